"""Write docs/tour.md and its drawings: run every stage on the pages and questions in docs/tour/data and fill in template.md.

    make tour                              (python docs/tour/make.py)  writes docs/tour.md and docs/tour/*.svg
    python docs/tour/make.py --check       writes nothing; says where the page differs from what the code does now, exit 1

In:  template.md, in which {{name}} is a value of the stages and [[mmed/model.py: rotate]] a place in the code.
Out: the page, the drawings, and everything between them in build/tour, for whoever wants to look at it.
Order: corpus_stages.py -> model_stages.py -> exam_stages.py; drawings.py draws. Seeds are fixed and one thread computes, so the
page is the same text again. Other processors round differently; TOLERANCE is what --check allows.
"""
from __future__ import annotations

import argparse
import ast
import contextlib
import io
import math
import os
import re
import sys
import tempfile
from pathlib import Path

import torch

from mmed.utils.errors import UserError, main_guard
from mmed.utils.files import atomic_write

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGE = HERE.parent / "tour.md"
# A number with a decimal point may differ by this share, or by one unit of its last digit; all others, and the text, not at all.
# With the vector instructions of AVX-512, AVX2 and none the losses differ by 1e-5 of their size at most.
TOLERANCE = 0.002
WORDS_A_MINUTE = 200
LINK = re.compile(r"\[\[([\w/.]+): ([\w.]+)\]\]")
PLACE = re.compile(r"#L\d+")  # lines move with every edit above them: they are written anew, not checked
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")


# ------------------------------------------------------------------------------------------------------------ the page

def line_of(file: str, name: str) -> int:
    """The line on which `name` (a function, class, method as Class.method, or constant) is defined in a file of the repository."""
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    for part in name.split("."):
        for node in body:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            if getattr(node, "name", None) == part or part in [getattr(target, "id", None) for target in targets]:
                line, body = node.lineno, getattr(node, "body", [])
                break
        else:
            raise UserError(f"docs/tour/template.md: {file} has no {name}; name the place that took it over")
    return line


def link(match: re.Match[str]) -> str:
    file, name = match.groups()
    return f"[`{file}: {name}`](../{file}#L{line_of(file, name)})"


def fill(template: str, values: dict[str, str]) -> str:
    """The template with every value and link in its place; a value that is missing or that no line uses is an error."""
    names = set(re.findall(r"\{\{(\w+)\}\}", template))
    names.discard("minutes")
    if missing := names - set(values):
        raise UserError(f"docs/tour/template.md: no stage gives {', '.join(sorted(missing))}")
    if unused := set(values) - names:
        raise UserError(f"docs/tour/template.md: does not show {', '.join(sorted(unused))}")
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: values.get(match[1], match[0]), template)
    page = page.replace("{{minutes}}", str(math.ceil(len(page.split()) / WORDS_A_MINUTE)))
    return "<!-- Made by docs/tour/make.py from docs/tour/template.md: edit that and run `make tour`. -->\n" + LINK.sub(link, page)


def build(work: Path) -> tuple[str, dict[str, str]]:
    """(the page, {file name: drawing})."""
    import corpus_stages
    import exam_stages
    import model_stages

    torch.set_num_threads(1)
    values: dict[str, str] = {}
    drawings: dict[str, str] = {}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for stages in (corpus_stages, model_stages, exam_stages):
            found, drawn = stages.run(work)
            values |= found
            drawings |= drawn
    return fill((HERE / "template.md").read_text(encoding="utf-8"), values), drawings


# --------------------------------------------------------------------------------------------------------------- check

def alike(old: str, new: str) -> bool:
    """Whether two texts are the same but for the last digits of numbers with a decimal point, and for line numbers.

    >>> alike("loss 1.234 of 7 ids, f.py#L12", "loss 1.235 of 7 ids, f.py#L99"), alike("loss 1.234", "loss 1.250"), alike("7 ids", "8 ids")
    (True, False, False)
    """
    old, new = PLACE.sub("", old), PLACE.sub("", new)
    if NUMBER.sub("", old) != NUMBER.sub("", new):
        return False
    return all(close(a, b) for a, b in zip(NUMBER.findall(old), NUMBER.findall(new), strict=True))


def close(a: str, b: str) -> bool:
    if a == b or "." not in a or "." not in b:
        return a == b
    mantissa, _, power = a.partition("e")
    unit = 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2]))
    return abs(float(a) - float(b)) <= max(TOLERANCE * abs(float(a)), 1.001 * unit)


def differences(name: str, old: str, new: str) -> list[str]:
    """What is no longer so in a file, a line each."""
    old_lines, new_lines = old.splitlines(), new.splitlines()
    if len(old_lines) != len(new_lines):
        place = next((i for i, pair in enumerate(zip(old_lines, new_lines)) if not alike(*pair)), min(len(old_lines), len(new_lines)))
        shown = [lines[place] if place < len(lines) else "(ends)" for lines in (old_lines, new_lines)]
        return [f"{name}:{place + 1}: {len(old_lines)} lines, now {len(new_lines)}; there: {shown[0]:.160}\n    now: {shown[1]:.160}"]
    return [f"{name}:{number}: there: {a:.160}\n    now: {b:.160}" for number, (a, b) in enumerate(zip(old_lines, new_lines), 1) if not alike(a, b)]


def check(page: str, drawings: dict[str, str]) -> list[str]:
    """Where docs/tour.md and its drawings differ from `page` and `drawings`."""
    wrong = []
    present = {path.name for path in HERE.glob("*.svg")}
    wrong += [f"docs/tour/{name}: nothing draws it any more" for name in sorted(present - set(drawings))]
    for path, new in [(PAGE, page), *((HERE / name, drawing) for name, drawing in drawings.items())]:
        name = str(path.relative_to(ROOT))
        wrong += differences(name, path.read_text(encoding="utf-8"), new) if path.is_file() else [f"{name}: is not there"]
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python docs/tour/make.py", description="Write docs/tour.md and its drawings.")
    parser.add_argument("--check", action="store_true", help="only say where the page differs from what the code does now")
    options = parser.parse_args()
    os.chdir(ROOT)  # commands on the page are typed here
    with tempfile.TemporaryDirectory() if options.check else contextlib.nullcontext(ROOT / "build" / "tour") as work:
        page, drawings = build(Path(work))
    if options.check:
        if wrong := check(page, drawings):
            raise UserError("docs/tour.md is not what the code does now; run `make tour` and read what changed:\n" + "\n".join(wrong[:20]))
        print("docs/tour.md and its drawings are what the code does")
        return 0
    for old in HERE.glob("*.svg"):
        old.unlink()
    for path, text in [(PAGE, page), *((HERE / name, drawing) for name, drawing in drawings.items())]:
        with atomic_write(path) as file:
            file.write(text)
    print(f"docs/tour.md: {len(page.split()):,} words, {len(drawings)} drawings; what the stages made is in build/tour", file=sys.stderr)
    return 0


if __name__ == "__main__":
    main_guard(main)
