"""mmed/utils/errors.py: errors of one line, exit codes, and the option parser."""
import subprocess
import sys

import pytest

from mmed.utils.errors import LONGEST, Parser, UserError, main_guard


@pytest.mark.parametrize("text", [
    "two\nlines", "\x1b]0;title\x07\x1b[2J", "\u202egnp.exe", "\r overwritten", "a\u2028b", "\x9b31m",
    "x" * 10**7, "\ud800", "a\0b"])
def test_quoted_text_cannot_leave_the_line_of_an_error(text, capsys):
    def main():
        raise UserError(f"file.json:3: {text}; do this")

    with pytest.raises(SystemExit) as end:
        main_guard(main)
    error = capsys.readouterr().err
    assert end.value.code == 1 and error.startswith("error: file.json:3: ") and error.endswith("; do this\n")
    assert error[:-1].isprintable() and len(error) < LONGEST + 10


def test_printable_text_of_any_script_is_unchanged():
    for text in ("naïve \u2014 「患者」 \u0928\u0940 é 😀", r"a\nb"):
        assert str(UserError(text)) == text


def make_parser() -> Parser:
    parser = Parser(prog="x", example="x one a --out b")
    parser.add_argument("--verbose", action="store_true")
    commands = parser.add_subparsers(dest="command", required=True)
    one, two = commands.add_parser("one"), commands.add_parser("two")
    one.add_argument("inputs", nargs="+")
    one.add_argument("--out_file", required=True)
    two.add_argument("--model")
    return parser


@pytest.mark.parametrize(("line", "message"), [
    ("one a --out_file b --vebrose", "unknown option --vebrose; did you mean --verbose?"),
    ("two --modle=x", "unknown option --modle; did you mean --model?"),
    ("one a --ot-file b", "unknown option --ot-file; did you mean --out_file?"),
    ("--verbos one a --out_file b", "did you mean --verbose?"),
    ("two --mod x", "did you mean --model?"),
    ("two --verbose", "unrecognized arguments: --verbose"),
    ("two more", "unrecognized arguments: more"),
    ("two m\x1b[2J", r"unrecognized arguments: m\x1b[2J"),
    ("one a", "required: --out_file"),
    ("three", "invalid choice: 'three'"),
    ("two --a\x1b[2J", r"unknown option --a\x1b[2J;")])
def test_a_wrong_option_gets_the_nearest_one_as_suggestion(line, message, capsys):
    with pytest.raises(SystemExit) as end:
        make_parser().parse_args(line.split(" "))
    assert end.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--out_file=b-c", "--out-file=b-c"])
def test_dashes_and_underscores_in_options_are_the_same(option):
    options = make_parser().parse_args(["--verbose", "one", "a-b", option])
    assert vars(options) == {"verbose": True, "command": "one", "inputs": ["a-b"], "out_file": "b-c"}


def test_help_ends_with_the_example():
    assert make_parser().format_help().endswith("example:\n  x one a --out b\n")


def command(body: str) -> list[str]:
    code = f"import time\nfrom mmed.utils.errors import main_guard\nmain_guard({body})"
    return [sys.executable, "-c", code]


def test_a_closed_pipe_ends_in_silence():
    shell = subprocess.run(["bash", "-c", '"$@" | head -1', "", *command("lambda: print('x\\n' * 10 ** 6)")],
                           capture_output=True, text=True)
    assert shell.stdout == "x\n" and not shell.stderr


def test_typed_text_in_another_encoding_is_read_with_escapes():
    done = subprocess.run(command("lambda: print(input())"), input=b"caf\xe9\n", capture_output=True)
    assert done.stdout == b"caf\\xe9\n" and not done.stderr


def test_a_command_that_is_asked_to_end_exits_75():
    child = subprocess.Popen(command("lambda: print('running', flush=True) or time.sleep(60)"),
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "running\n"
    child.terminate()
    assert child.communicate(timeout=20)[1] == "stopped\n" and child.returncode == 75
