"""A corpus by one command: six languages of mixed origin to streams, killed on the way, and what a recipe may not say."""
import gzip
import itertools
import json
import random
import subprocess
import sys
import time
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from data_prep.pipeline.recipe import Recipe, Source, read_recipe, steps
from data_prep.books import check_tesseract
from examples.demo import micro_world
from examples.demo.micro_world_words import WORDS
from mmed.tokenizer import train_sentencepiece
from mmed.utils.errors import UserError

SEED = random.SystemRandom().randrange(10**6)


def medical_texts(language: str, count: int) -> list[str]:
    """Different pages of the demo's world that the keyword filter keeps."""
    rng = random.Random(f"{SEED} {language}")
    world = micro_world.make_world(SEED)
    return [" ".join(micro_world.medical_page(world, language, (number + shift) % micro_world.DISEASES, 4, rng) for shift in range(3))
            for number in range(count)]


def write_book(path: Path, texts: list[str], scanned: bool) -> None:
    fpdf = pytest.importorskip("fpdf")
    book = fpdf.FPDF(format="A5")
    book.set_font("helvetica", size=12)
    for text in texts:
        book.add_page()
        book.multi_cell(0, 6, text)
    path.write_bytes(bytes(book.output()))
    if scanned:  # the same pages as pictures
        pdfium = pytest.importorskip("pypdfium2")
        pages = [page.render(scale=2).to_pil().convert("L") for page in pdfium.PdfDocument(path)]
        book = fpdf.FPDF(format="A5")
        for page in pages:
            book.add_page()
            book.image(page, 0, 0, book.w, book.h)
        path.write_bytes(bytes(book.output()))


def mixed_slice(root: Path) -> Path:
    """Six languages, every kind of origin, and input that cannot be used in each; returns the recipe."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    for name in ("web-en", "books-en", "web-zh", "web-ja", "sites-fr", "web-ru", "scans-es"):
        (root / name).mkdir(parents=True)
    texts = {language: medical_texts(language, 24) for language in WORDS}
    lines = [json.dumps({"text": text, "id": f"en-{i}", "url": "https://example.org"}) for i, text in enumerate(texts["en"])]
    bad = ['{"text": "cut off', '"no object"', '{"text": ""}', '{"id": "no text"}', lines[0].replace("en-0", "copy")]
    (root / "web-en" / "a.jsonl").write_bytes("\n".join(lines + bad).encode() + b'\n{"text": "\xff\xfe", "id": "bytes"}\n')
    with gzip.open(root / "web-en" / "b.jsonl.gz", "wt") as file:
        file.write("\n".join(lines[:6]))
    whole = (root / "web-en" / "b.jsonl.gz").read_bytes()
    (root / "web-en" / "c.jsonl.gz").write_bytes(whole[:len(whole) // 2])
    write_book(root / "books-en" / "book.pdf", texts["en"], scanned=False)
    (root / "books-en" / "broken.pdf").write_bytes(b"%PDF-1.7\nnothing")
    for language in ("zh", "ru"):
        parquet.write_table(pyarrow.table({"text": [*texts[language], "", "\0"], "id": [str(i) for i in range(26)]}), root / f"web-{language}" / "part.parquet")
    data = (root / "web-ru" / "part.parquet").read_bytes()
    (root / "web-ru" / "cut.parquet").write_bytes(data[:len(data) // 2])
    question = "".join(random.Random(SEED).sample([chr(0x3042 + i) for i in range(80)], 60))  # in one document alone
    (root / "web-ja" / "ja.txt").write_text("\n\n".join([*texts["ja"], f"{question}。{texts['ja'][0]}"]), encoding="utf-8")
    for number, text in enumerate(texts["fr"]):
        paragraphs = "".join(f"<p>{part}</p>" for part in text.replace(". ", ".|").split("|"))
        (root / "sites-fr" / f"{number}.html").write_text(
            f"<html><head><title>Page {number}</title><meta charset='utf-8'></head><body><nav>Accueil | Contact</nav><article>{paragraphs}</article></body></html>",
            encoding="utf-8")
    wikipedia = [{"id": str(number), "url": f"https://es.example/{number}", "title": f"P{number}", "text": text}
                 for number, text in enumerate(texts["es"])]
    parquet.write_table(pyarrow.Table.from_pylist(wikipedia), root / "eswiki.parquet")
    write_book(root / "scans-es" / "scan.pdf", [text.encode("latin-1", "ignore").decode("latin-1") for text in texts["es"][:2]], scanned=True)
    train_sentencepiece([text for each in texts.values() for text in each], root / "tokenizer", 900)
    (root / "benchmark").mkdir()
    item = {"question": question, "options": {"A": "1", "B": "2"}, "answer_idx": "A"}
    (root / "benchmark" / "Japanese.jsonl").write_text(json.dumps(item) + "\n")
    recipe = root / "recipe.toml"
    recipe.write_text('''
title = "Six languages"
tokenizer = "tokenizer"
mask_personal = true
benchmark = "benchmark"
held_out = 0.05
''' + "".join(f'[[source]]\nlanguage = "{language}"\nkind = "{kind}"\ninputs = ["{inputs}"]\n{more}\n' for language, kind, inputs, more in (
        ("en", "web", "web-en", 'licence = "CC0"'), ("en", "book", "books-en", ""), ("zh", "web", "web-zh", ""), ("ja", "web", "web-ja", "paragraphs = true"),
        ("fr", "site", "sites-fr", ""), ("ru", "web", "web-ru", ""), ("es", "corpus", "eswiki.parquet", 'name = "Wikipedia"\nfilter = true'),
        ("es", "book", "scans-es", ""))), encoding="utf-8")
    return recipe


def command(recipe: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "data_prep.corpus", str(recipe), "--out", str(out)]


def files_of(folder: Path) -> dict[str, bytes]:
    """All that a run leaves, but for its clocks, logs and the PDF files of OCR, which hold the time."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and not {"done", "logs", "work"} & set(path.relative_to(folder).parts) and path.suffix not in (".lock",)}


@pytest.mark.slow
def test_a_mixed_slice_killed_three_times_gives_the_bytes_of_an_uninterrupted_run(tmp_path):
    pytest.importorskip("trafilatura")

    recipe = mixed_slice(tmp_path / "raw")
    try:
        check_tesseract("spa")
    except UserError:
        recipe.write_text("ocr = false\n" + recipe.read_text(encoding="utf-8"), encoding="utf-8")
    begun = time.time()
    whole = subprocess.run(command(recipe, tmp_path / "corpus"), capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr[-3000:]
    seconds = time.time() - begun
    (tmp_path / "corpus").rename(tmp_path / "whole")
    rng, killed = random.Random(SEED), 0
    for _ in range(3):
        child = subprocess.Popen(command(recipe, tmp_path / "corpus"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.1, 0.5) * seconds)
        killed += child.poll() is None
        child.kill()  # nothing, when it has ended
        child.wait()
        time.sleep(0.3)
    assert killed >= 1
    last = subprocess.run(command(recipe, tmp_path / "corpus"), capture_output=True, text=True)
    assert last.returncode == 0, (SEED, last.stderr[-3000:])
    one, other = files_of(tmp_path / "whole"), files_of(tmp_path / "corpus")
    assert one.keys() == other.keys(), f"seed {SEED}"
    assert [name for name in one if one[name] != other[name]] == [], f"seed {SEED}"

    result = json.loads(one["corpus.json"])
    assert set(result["counts"]) == set(WORDS) and all(count["tokens"] > 500 for by in result["counts"].values() for count in by.values())
    assert set(result["counts"]["en"]) == {"web", "book"} and set(result["counts"]["fr"]) == {"site"}
    rows = {(row["language"], row["step"]): row for row in result["funnel"]}
    assert sum(rows["en", "web"]["dropped"].values()) >= 5, rows["en", "web"]  # the lines that cannot be used
    assert sum(rows["en", "deduplication"]["dropped"].values()) >= 6  # b.jsonl.gz holds copies
    assert sum(rows["ja", "decontamination"]["dropped"].values()) == 1
    readme = one["README.md"].decode()
    assert "| en | web | web-en | CC0 |" in readme and "No licence is stated for" in readme and "not done: language identification" in readme
    assert "dropped because" in whole.stdout and (tmp_path / "whole" / "report.html").is_file()


def test_a_recipe_is_refused_in_one_line_that_names_the_key(tmp_path):
    recipe = tmp_path / "recipe.toml"
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "in").mkdir()
    good = {"top": 'tokenizer = "tokenizer"', "source": 'language = "en"\nkind = "web"\ninputs = ["in"]'}

    def refusal(**parts: str) -> str:
        recipe.write_text("{top}\n[[source]]\n{source}\n".format(**{**good, **parts}), encoding="utf-8")
        with pytest.raises(UserError) as error:
            read_recipe(recipe)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "not TOML" in refusal(top="tokenizer = ")
    assert "held_uot" in (text := refusal(top=good["top"] + "\nheld_uot = 0.1")) and "did you mean held_out" in text
    assert "tokenizer missing" in refusal(top="").replace("'", "")
    assert "held_out='much' is not a float" in refusal(top=good["top"] + '\nheld_out = "much"')
    assert "no source is in one of them" in refusal(top=good["top"] + '\nlanguages = ["fr"]')
    assert "source 1" in (text := refusal(source='language = "en"\nkind = "webb"\ninputs = ["in"]')) and "webb" in text
    assert "nowhere" in refusal(source='language = "en"\nkind = "web"\ninputs = ["nowhere"]')
    assert "list of strings" in refusal(source='language = "en"\nkind = "web"\ninputs = [3]')
    assert "inputs" in refusal(source='language = "en"\nkind = "web"')
    assert "language" in refusal(source='language = "xx"\nkind = "web"\ninputs = ["in"]')
    recipe.write_text('tokenizer = "tokenizer"', encoding="utf-8")
    with pytest.raises(UserError, match=r"no \[\[source\]\]"):
        read_recipe(recipe)
    with pytest.raises(UserError, match="no such recipe"):
        read_recipe(tmp_path / "none.toml")


def test_the_example_recipe_has_no_key_that_is_unknown_and_names_every_key():
    text = (Path(__file__).parents[2] / "examples" / "corpus.toml").read_text(encoding="utf-8")
    table = tomllib.loads("\n".join(line.removeprefix("# ") if line.startswith("# ") and " = " in line[:20] else line for line in text.split("\n")))
    sources = table.pop("source")
    assert set(table) | {"source"} == {entry.name for entry in fields(Recipe)}
    assert {key for source in sources for key in source} <= {entry.name for entry in fields(Source)}
    for key, value in table.items():  # the values in comments are the defaults
        default = next(entry.default for entry in fields(Recipe) if entry.name == key)
        assert key in ("title", "tokenizer", "held_out", "languages") or default == value, key


def test_steps_come_in_order_and_only_those_that_were_asked_for(tmp_path):
    recipe = Recipe("t", [Source("en", "web", ["a"]), Source("en", "book", ["b"])], deduplicate=False)
    assert [step.name for step in steps(recipe, "out", 2)] == ["source-en-1", "source-en-2", "streams-en", "report"]
    recipe.deduplicate, recipe.language_id, recipe.benchmark = True, True, "exam"
    plan = steps(recipe, "out", 2)
    assert [step.name for step in plan] == ["source-en-1", "source-en-2", "clean-en", "unique-en", "uncontaminated-en", "streams-en", "report"]
    for before, after in itertools.pairwise(plan[2:-1]):
        assert after.needs == (before.name,) and any("out/" in word and word.endswith("/kept") for word in after.commands[0])
