"""docs/tour.md: regenerating changes nothing, its links lead somewhere, its drawings can be read
on light and dark pages.
"""
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[1]
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
    done = subprocess.run([sys.executable, str(FOLDER / "make.py"), "--check"],
                          cwd=ROOT,
                          capture_output=True,
                          text=True,
                          timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("old, new, same", [
    ("loss 2.446 of 26", "loss 2.447 of 26", True),      # one unit of the last digit
    ("loss 2.446 of 26", "loss 2.460 of 26", False),
    ("3524.2", "3524.9", True),                          # a share of the number
    ("3524.2", "3540.9", False),
    ("2.661e-09", "2.662e-09", True),
    ("2.661e-09", "2.661e-08", False),
    ("26 tokens", "27 tokens", False),                   # a count is exact
    ("a 1.0", "b 1.0", False),
    ("-0.047", "0.047", False),
    ("f.py#L12)", "f.py#L345)", True),                   # lines move with every edit above them
    ("[`f.py: a`](f.py#L12)", "[`f.py: b`](f.py#L12)", False),
    ("1.0 2.0", "1.0", False),
])
def test_what_may_differ_on_another_processor_and_what_may_not(make, old, new, same):
    assert make.alike(old, new) is same and bool(make.differences("x", old, new)) is not same


def test_a_change_is_told_with_its_place(make):
    assert make.differences("tour.md", "a\nloss 1.5\n",
                            "a\nloss 1.9\n") == ["tour.md:2: there: loss 1.5\n    now: loss 1.9"]
    assert "3 lines, now 2; there: b" in make.differences("tour.md", "a\nb\nc\n", "a\nc\n")[0]


def test_every_place_that_the_template_names_is_in_the_code(make):
    links = make.LINK.findall((FOLDER / "template.md").read_text(encoding="utf-8"))
    assert len(links) > 40
    for file, name in links:
        line = (ROOT / file).read_text(encoding="utf-8").splitlines()[make.line_of(file, name) - 1]
        assert name.rpartition(".")[2] in line
    with pytest.raises(make.UserError, match=r"mmed/model.py has no Transformer.backward; name the place"):
        make.line_of("mmed/model.py", "Transformer.backward")


def test_a_value_too_many_or_too_few_is_an_error(make):
    assert "loss 1.5" in make.fill("loss {{loss}}, {{minutes}}", {"loss": "1.5"})
    with pytest.raises(make.UserError, match="no stage gives loss"):
        make.fill("{{loss}}", {})
    with pytest.raises(make.UserError, match="does not show rest"):
        make.fill("{{loss}}", {"loss": "1", "rest": "2"})


def test_links_and_pictures_of_the_page_are_there():
    page = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    assert "{{" not in page and "[[" not in page
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page) + re.findall(r'<img src="([^"]+)"', page)
    assert {path.name
            for path in DRAWINGS} == {Path(target).name
                                      for target in targets if target.endswith(".svg")}
    for target in targets:
        assert (ROOT / "docs" / target).exists(), target


@pytest.mark.parametrize("path", DRAWINGS, ids=[path.stem for path in DRAWINGS])
def test_a_drawing_is_small_and_has_colours_for_light_and_dark(path):
    text = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert len(text) < 30_000 and root.tag.endswith("svg") and root.get("aria-label") and root.get("viewBox")
    assert "prefers-color-scheme: dark" in text and "http" not in text.replace(
        'xmlns="http://www.w3.org/2000/svg"', "")
