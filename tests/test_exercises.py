"""The exercises: the reference solution passes; the empty file and likely mistakes get an explanation."""
import importlib
import re
import sys

import pytest
from repository import ROOT

NUMBERS = [int(path.name[:2]) for path in sorted((ROOT / "exercises").glob("[0-9]*.py"))]


@pytest.fixture(scope="module")
def check():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "exercises"))
        yield importlib.import_module("check")
        for name in ("check", "checks_text", "checks_model", "student"):
            sys.modules.pop(name, None)


def test_every_exercise_has_a_task_a_solution_a_check_and_something_to_read_next(check):
    assert NUMBERS == list(range(1, 13))
    solutions = check.files(solutions=True)
    assert set(NUMBERS) == set(check.files()) == set(solutions) == set(check.checks()) == set(check.NEXT)
    for number, path in check.files().items():
        source = path.read_text(encoding="utf-8")
        assert path.name == solutions[number].name and source.startswith(f'"""Exercise {number}: ')
    for text in check.NEXT.values():
        file, names = re.match(r"([\w/]+\.py) \(([\w., ]+?)[:)]", text).groups()
        source = (ROOT / file).read_text(encoding="utf-8")
        for name in names.replace(".", ", ").split(", "):
            assert re.search(rf"^\s*(?:def|class) {name}\b", source, re.MULTILINE), f"{file} has no {name}"


@pytest.mark.parametrize("number", NUMBERS)
def test_the_reference_solution_is_right_and_the_empty_file_is_not(check, number):
    check.check(number, check.files(solutions=True)[number], seed=1)
    with pytest.raises(check.Wrong, match="gives nothing back yet: write the body"):
        check.check(number, check.files()[number], seed=1)


# A likely mistake for each exercise: what stands in the solution, what a student may have written, and what
# the check must say.
MISTAKES = [
    (1, "_, i = min(pairs)", "_, i = max(pairs)", "your encode"),
    (2, 'word.startswith(stem)', 'stem in word', "medical_numbers"),
    (2, "covered += len(stem)", "covered += len(word)", "expected 0.722222"),
    (3, "ours & theirs", "Counter({g: ours[g] for g in ours if g in theirs})", "bleu4"),
    (3, "1.0 if len(candidate) > len(reference) else", "", "bleu4"),
    (4, "max(above[j + 1], row[j])", "above[j + 1]", "rouge_l"),
    (5, "x[:, :E // 2], x[:, E // 2:]", "x[:, ::2], x[:, 1::2]", "rope"),
    (6, " & (documents[:, None] == documents)", "", "documents"),
    (6, "repeat_interleave(H // len(x), 0)", "repeat(H // len(x), 1, 1)", "k and v of 2"),
    (7, "i + 1 >= prompt_length", "i >= prompt_length", "'labels'"),
    (8, "W + alpha / len(A)", "W + alpha", "lora_merge"), (9, "        g[~counts] = 0\n", "", "result 2"),
    (9, "range(0, len(labels), rows)", "range(0, len(labels), rows := len(labels))", "no more than"),
    (10, "p = p - lr * decay * p", "g = g + decay * p", "adamw_step"),
    (10, "(step + 1) / warmup", "step / warmup", "learning_rate\\(0"),
    (11, "while waiting and len(running) < max_batch_size:",
     "if not running:\n            still = waiting[:max_batch_size]\n        while not running and still:\n"
     "            running, waiting, still = still, waiting[max_batch_size:], []\n        while False:",
     "calls in batches"),
    (12, "(x, own)", "(x, all_gather(own))", "keeps the whole weight"),
    (12, "reduce_scatter(grad_y.T @ x)", "(grad_y.T @ x)[:len(own)]", "own rows"),
]


@pytest.mark.parametrize("number, right, wrong, message", MISTAKES)
def test_a_likely_mistake_is_found_and_explained(check, number, right, wrong, message, tmp_path):
    solution = check.files(solutions=True)[number]
    source = solution.read_text(encoding="utf-8")
    assert right in source
    path = tmp_path / solution.name
    path.write_text(source.replace(right, wrong), encoding="utf-8")
    for seed in range(3):  # some mistakes show on some inputs only
        try:
            check.check(number, path, seed)
        except check.Wrong as problem:
            assert re.search(message, str(problem)), problem
            return
    pytest.fail(f"exercise {number}: {wrong!r} in the place of {right!r} passes the check")


@pytest.mark.parametrize("body, message", [
    ("def bleu4(candidate, reference):\n    return candidate / 2\n",
     "bleu4\\(.*stopped with TypeError: .*\\(line 2 of mine.py\\)"),
    ("def bleu4(candidate, reference)\n", "Python cannot read mine.py: SyntaxError: .*line 1"),
    ("def other():\n    return 1\n", "no function bleu4 any more"),
    ("def bleu4(candidate, reference):\n    return 'high'\n", "is 'high', expected 0.402942"),
])
def test_whatever_a_student_writes_is_answered_in_words(check, body, message, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(body, encoding="utf-8")
    with pytest.raises(check.Wrong, match=message):
        check.check(3, path, 0)


def test_the_command_lists_checks_and_leaves_with_its_exit_code(check, capsys):
    assert check.main([]) == 0
    assert list(map(int, re.findall(r"^\s*(\d+)  \w", capsys.readouterr().out, re.MULTILINE))) == NUMBERS
    assert check.main(["3", "--solution", "--seed", "5"]) == 0
    assert capsys.readouterr().out.startswith("Right: BLEU-4")
    assert check.main(["3", "--seed", "5"]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("Not yet: ") and "make exercise N=3 SEED=5" in printed
    with pytest.raises(check.UsageError, match="there is no exercise 99"):
        check.main(["99"])
