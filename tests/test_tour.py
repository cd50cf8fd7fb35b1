"""docs/tour.md: regenerating changes nothing, and its template names places of the code."""
import importlib.util
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from repository import ROOT

FOLDER = ROOT / "docs" / "tour"


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


def test_the_pages_drawings_are_there_small_and_self_contained():
    page = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    assert "{{" not in page and "[[" not in page
    drawings = {f"tour/{path.name}": path.read_text(encoding="utf-8") for path in FOLDER.glob("*.svg")}
    assert drawings.keys() == set(re.findall(r'<img src="([^"]+)"', page))
    for text in drawings.values():
        root = ElementTree.fromstring(text)
        assert root.tag.endswith("svg") and root.get("aria-label") and root.get("viewBox")
        assert len(text) < 30_000 and "prefers-color-scheme: dark" in text
        assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")
