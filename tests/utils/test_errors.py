"""mmed/utils/errors.py: one line whatever it quotes, exit codes, and the nearest option for a misspelt one.
"""
import subprocess
import sys

import pytest

from mmed.utils.errors import LONGEST, Parser, UserError, main_guard


def code_and_error(main, capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main_guard(main)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize("text", [
    "two\nlines", "\x1b]0;title\x07\x1b[2J", "\u202egnp.exe", "\r overwritten", "a\u2028b", "\x9b31m",
    "x" * 10**7, "\ud800", "a\0b"
])
def test_what_a_stranger_wrote_cannot_leave_the_line_of_an_error(text, capsys):
    def main():
        raise UserError(f"file.json:3: {text}; do this")

    code, error = code_and_error(main, capsys)
    assert code == 1 and error.startswith("error: file.json:3: ") and error.endswith("; do this\n")
    assert error[:-1].isprintable() and len(error) < LONGEST + 10


def test_ordinary_text_of_any_script_is_left_as_it_is():
    for text in ("naïve \u2014 「患者」 \u0928\u0940 é 😀", r"a\nb"):
        assert str(UserError(text)) == text


def parser() -> Parser:
    made = Parser(prog="x")
    made.add_argument("--verbose", action="store_true")
    commands = made.add_subparsers(dest="command", required=True)
    one, two = commands.add_parser("one"), commands.add_parser("two")
    one.add_argument("inputs", nargs="+")
    one.add_argument("--out", required=True)
    two.add_argument("--model")
    return made


@pytest.mark.parametrize(
    ("line", "said"), [("one a --out b --vebrose", "unknown option --vebrose; did you mean --verbose?"),
                       ("two --modle=x", "unknown option --modle; did you mean --model?"),
                       ("one a --ot b", "unknown option --ot; did you mean --out?"),
                       ("--verbos one a --out b", "did you mean --verbose?"),
                       ("two --mod x", "did you mean --model?"), ("two more", "unexpected argument 'more'"),
                       ("one a", "required: --out"), ("three", "invalid choice: 'three'"),
                       ("two --a\x1b[2J", r"unknown option --a\x1b[2J;"), ])
def test_of_an_unknown_option_the_nearest_known_one_is_named(line, said, capsys):
    with pytest.raises(SystemExit) as end:
        parser().parse_args(line.split(" "))
    assert end.value.code == 2 and said in capsys.readouterr().err


def test_a_right_line_is_read_as_argparse_reads_it():
    assert vars(parser().parse_args(
        ["--verbose", "one", "a", "b", "--out",
         "c"])) == {"verbose": True, "command": "one", "inputs": ["a", "b"], "out": "c"}


def test_a_closed_pipe_ends_in_silence():
    code = ("from mmed.utils.errors import main_guard\n"
            "def main():\n  for _ in range(10 ** 5): print('x' * 100)\nmain_guard(main)")
    shell = subprocess.run(["bash", "-c", f"{sys.executable} -c \"$0\" | head -1", code],
                           capture_output=True,
                           text=True)
    assert shell.stdout == "x" * 100 + "\n" and not shell.stderr
