"""The API documentation out of the docstrings: `make docs`, which runs `python docs/api_pages.py build/docs`.

pdoc reads docstrings as Markdown; ours are written for the eye in the source. So each is put into Markdown first (`as_markdown`).
"""
import re
import sys
import warnings
from pathlib import Path

CSS = ".docstring pre { overflow-x: auto; font-size: .8rem; }"


def as_markdown(docstring: str) -> str:
    """Tags are no headings, "In:" and "Out:" begin lines of their own, and what stands in columns stays in columns.

    >>> print(as_markdown("Sums.\\n\\nIn:  a\\nOut: b\\n# DIFFERS: c\\nd\\n\\none    x\\ntwo    y"))
    Sums.
    <BLANKLINE>
    In:  a<br>
    Out: b
    <BLANKLINE>
    **DIFFERS**: c
    d
    <BLANKLINE>
    ```text
    one    x
    two    y
    ```
    """
    blocks = []
    docstring = re.sub(r"^[ \t]*(?:# )?(MMedLM|DIFFERS): ", r"\n**\1**: ", docstring, flags=re.MULTILINE)
    for block in re.split(r"\n[ \t]*\n", re.sub(r"^# ", "", docstring, flags=re.MULTILINE)):
        lines = block.strip("\n").split("\n")
        indented = all(line.startswith("    ") for line in lines)  # code already
        columns = sum("   " in line.rstrip() for line in lines) > 1 or any(line.startswith("   ") for line in lines[1:])
        if columns and not indented and "```" not in block and ">>>" not in block and not re.match(r"\s*[-*|] ", block):
            blocks.append("```text\n" + "\n".join(lines) + "\n```")
        else:
            blocks.append(re.sub(r"\n(?=[A-Z][\w ]{1,20}: )", "<br>\n", "\n".join(lines)) if not indented else "\n".join(lines))
    return "\n\n".join(block for block in blocks if block)


def main(out: Path, modules: tuple[str, ...] = ("mmed", "data_prep")) -> None:
    import pdoc
    import pdoc.docstrings
    import pdoc.render

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    warnings.filterwarnings("ignore", message="Error parsing type annotation")  # names of modules that a function imports itself
    convert = pdoc.docstrings.convert
    pdoc.docstrings.convert = lambda docstring, *rest: convert(as_markdown(docstring), *rest)
    pdoc.render.configure(docformat="markdown", search=True)
    try:
        pdoc.pdoc(*modules, output_directory=out)
    finally:
        pdoc.docstrings.convert = convert
    for page in out.rglob("*.html"):
        page.write_text(page.read_text(encoding="utf-8").replace("</head>", f"<style>{CSS}</style></head>", 1), encoding="utf-8")
    print(f"{out / 'index.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs"))
