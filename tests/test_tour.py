"""docs/tour.md: regenerating changes nothing, its links lead somewhere, its drawings suit dark pages."""
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from repository import ROOT

FOLDER = ROOT / "docs" / "tour"
DRAWINGS = sorted(FOLDER.glob("*.svg"))


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("tour_make", FOLDER / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_tour_made_anew_says_what_it_said():
    done = subprocess.run([sys.executable, str(FOLDER / "make.py"), "--check"], cwd=ROOT, timeout=600,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_place_that_the_template_names_is_in_the_code(make):
    links = make.LINK.findall((FOLDER / "template.md").read_text(encoding="utf-8"))
    assert len(links) > 40
    for file, name in links:
        line = (ROOT / file).read_text(encoding="utf-8").splitlines()[make.line_of(file, name) - 1]
        assert name.rpartition(".")[2] in line
    with pytest.raises(make.UserError, match=r"mmed/model.py has no Transformer.backward; name the place"):
        make.line_of("mmed/model.py", "Transformer.backward")


def test_links_and_pictures_of_the_page_are_there():
    page = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    assert "{{" not in page and "[[" not in page
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page) + re.findall(r'<img src="([^"]+)"', page)
    assert {path.name for path in DRAWINGS} == {Path(name).name for name in targets if name.endswith(".svg")}
    missing = [target for target in targets if not (ROOT / "docs" / target).exists()]
    assert not missing


@pytest.mark.parametrize("path", DRAWINGS, ids=[path.stem for path in DRAWINGS])
def test_a_drawing_is_small_and_has_colours_for_light_and_dark(path):
    text = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert len(text) < 30_000 and root.tag.endswith("svg") and root.get("aria-label") and root.get("viewBox")
    assert "prefers-color-scheme: dark" in text
    assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")
