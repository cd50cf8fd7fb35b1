"""The tour's first half: the raw pages of docs/tour/data through clean, filter, deduplication, tokenizer and
stream, each by its own command.

In: a folder to work in. Out: what the page shows of each stage, by the names in template.md; drawings; and
the folder, filled.
"""
from __future__ import annotations

import gzip
import itertools
import json
import shutil
import textwrap
from pathlib import Path

import numpy as np
from drawings import stream_rows

from data_prep import clean, dedup, filter_medical, tokenize_corpus
from data_prep.documents import Document, find_inputs, read_documents
from data_prep.filters import minhash
from data_prep.filters.keyword_matcher import Matcher
from data_prep.filters.keyword_rule import default_patterns, dictionary_form
from mmed.data import PretrainRows, Row, TokenStream
from mmed.languages import get_language
from mmed.prompts import build_prompt, build_target, read_benchmark
from mmed.tokenizer import Tokenizer, train_sentencepiece

DATA = Path("docs/tour/data")  # commands run in the repository's root
LANGUAGES = ("en", "zh")
VOCABULARY = 900
SEQUENCE = 128  # tokens of a row
PAGE = "insulin"  # the document that the tour follows
NAMES = (PAGE, "insulin-mirror", "iron", "iron-again")
SENTENCE = "Insulin lowers the glucose in the blood."
IN_CHINESE = "胰岛素能降低血糖。"
IN_JAPANESE = "インスリンは膵臓のホルモンで、血糖を下げる。"


def table(head: list[str], rows: list[list[object]]) -> str:
    """A Markdown table; a bar in a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |"
                     for line in lines)


def shown(piece: str) -> str:
    """A piece as code, with its space sign and control characters to be seen."""
    return "`" + piece.replace("\n", "\\n") + "`"


def wrapped(text: str, width: int = 118) -> str:
    """Long lines broken, so that a page need not be moved sideways."""
    return "\n".join(
        part for line in text.split("\n")
        for part in textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""])


def typed(command: list[str], width: int = 110) -> str:
    """A command as it is typed, over several lines."""
    return " \\\n".join(
        textwrap.wrap(" ".join(command),
                      width,
                      subsequent_indent="    ",
                      break_long_words=False,
                      break_on_hyphens=False))


def documents(folder: Path) -> dict[str, Document]:
    return {document.id: document for path in find_inputs([folder]) for document in read_documents(path)}


def run(work: Path) -> tuple[dict[str, str], dict[str, str]]:
    shutil.rmtree(work, ignore_errors=True)
    for code in LANGUAGES:
        clean.main([
            str(DATA / "web" / f"{code}.jsonl"), "--language", code, "--mask-personal", "--out",
            str(work / "clean" / code)
        ])
        filter_medical.main(
            [str(work / "clean" / code / "kept"), "--language", code, "--out",
             str(work / "filtered" / code)])
        dedup.main([str(work / "filtered" / code / "kept"), "--out", str(work / "unique" / code)])
    values = raw_and_clean(work) | filtering(work) | duplicates(work)
    tokenizer = make_tokenizer(work)
    for code in LANGUAGES:
        tokenize_corpus.main([
            str(work / "unique" / code / "kept"), "--tokenizer",
            str(work / "tokenizer"), "--out",
            str(work / "streams" / code)
        ])
    values |= pieces(work, tokenizer)
    found, drawings = stream(work, tokenizer)
    return values | found, drawings


# --------------------------------------------------------------------------------------------------- page, fi

def raw_and_clean(work: Path) -> dict[str, str]:
    line = next(line for line in (DATA / "web" / "en.jsonl").read_text(encoding="utf-8").splitlines()
                if json.loads(line)["id"] == PAGE)
    before, after = json.loads(line)["text"], documents(work / "clean" / "en")[PAGE].text
    return {
        "raw_line": wrapped(line), "raw_characters": str(len(before)), "clean_characters": str(len(after)),
        "clean_end": after[after.index("Questions"):]
    }


def filtering(work: Path) -> dict[str, str]:
    english, page = get_language("en"), documents(work / "clean" / "en")[PAGE]
    matcher = Matcher(english)
    decision, counts = matcher.explain(page.text)
    letters = sum(map(str.isalnum, page.text))
    # The spelling in the list and the letters of the text that it covers: a stem covers itself, not the
    # ending after it.
    rows, covered = [], 0
    for term, count in counts.items():
        number = next(i for i, written in enumerate(english.medical_words)
                      if dictionary_form(written) == term)
        found = [
            pattern.letters for pattern in default_patterns(english)
            if pattern.word == number and pattern.letters in page.text.lower()
        ]
        size = max(map(len, found))
        rows.append([f"`{english.medical_words[number]}`", count, f"{count} x {size} = {count * size}"])
        covered += count * size
    assert decision.hits == len(rows) and abs(decision.density - covered / letters) < 1e-9, (decision,
                                                                                             covered, letters)
    raw = matcher.explain(documents(DATA / "web" / "en.jsonl")[PAGE].text)[0]
    official, official_counts = Matcher(english, "official").explain(page.text)
    decisions = []
    for code in LANGUAGES:
        rule = Matcher(get_language(code))
        for document in documents(work / "clean" / code).values():
            judged, words = rule.explain(document.text)
            few = judged.hits < rule.min_hits
            dropped = "dropped: too few different words" if few else "dropped: too thin"
            verdict = "kept" if judged.medical else dropped
            decisions.append([
                document.id, judged.hits, f"{judged.density:.4f}", verdict,
                ", ".join(list(words)[:5]) + (", ..." if len(words) > 5 else "")
            ])
    japanese, japanese_words = Matcher(get_language("ja")).explain(IN_JAPANESE)
    return {
        "filter_terms": table(["term in `en.py`", "times", "letters it covers"],
                              rows), "mkc": str(decision.hits), "raw_mkc": str(raw.hits),
        "covered": str(covered), "letters": str(letters), "dens": f"{decision.density:.4f}", "min_hits": str(
            matcher.min_hits), "min_density": f"{matcher.min_density}", "official_mkc": str(
                official.hits), "official_dens": f"{official.density:.4f}",
        "official_words": ", ".join(official_counts), "official_min_hits": str(english.official_min_hits),
        "official_verdict": "kept" if official.medical else "dropped", "filter_all": table(
            ["page", "MKC", "DENS", "decision", "words"],
            decisions), "zh_min_hits": str(get_language("zh").min_hits), "zh_min_density": str(
                get_language("zh").min_density), "ja_sentence": IN_JAPANESE, "ja_mkc": str(japanese.hits),
        "ja_dens": f"{japanese.density:.4f}", "ja_words": ", ".join(japanese_words), "ja_min_hits": str(
            get_language("ja").min_hits)
    }


def duplicates(work: Path) -> dict[str, str]:
    kept = documents(work / "filtered" / "en")
    page, mirror, iron, again = (kept[name] for name in NAMES)
    signed = minhash.signatures([document.text for document in (page, mirror, iron, again)])
    one, other = minhash.shingles(page.text), minhash.shingles(mirror.text)
    jaccard = minhash.jaccard(minhash.shingle_hashes(page.text), minhash.shingle_hashes(mirror.text))
    assert abs(jaccard - len(one & other) / len(one | other)) < 1e-9
    bands, rows = dedup.band_shape(dedup.THRESHOLD, minhash.PERMUTATIONS)
    equal = signed.minima[0] == signed.minima[1]
    dropped = {
        document["id"]: document
        for path in sorted((work / "unique" / "en" / "dropped").iterdir())
        for document in _lines(path)
    }
    assert signed.exact[2] == signed.exact[3] and dropped["iron"]["duplicate_of"] == "iron-again"
    assert dropped["insulin-mirror"]["duplicate_of"] == PAGE
    show = [[
        name,
        str(int(signed.tokens[i])), f"`{int(signed.exact[i]):016x}`",
        " ".join(f"{int(b):04x}" for b in signed.minima[i, :6]) + " ..."
    ] for i, name in enumerate(NAMES)]
    return {
        "signatures": table(["page", "tokens", "hash of the normal form", "first 6 of the signature's bins"],
                            show), "bins": str(minhash.PERMUTATIONS),
        "shingle_words": str(minhash.SHINGLE_WORDS), "shingle": " ".join(
            next(iter(sorted(s for s in one
                             if s[0] == "insulin" and s[1] == "lowers")))), "shingles_page": str(len(one)),
        "shingles_mirror": str(len(other)), "shingles_shared": str(len(one & other)), "shingles_any": str(
            len(one | other)), "jaccard": f"{jaccard:.4f}", "bins_equal": str(int(equal.sum())),
        "bins_share": f"{equal.mean():.4f}", "bands": str(bands), "band_rows": str(rows), "bands_equal": str(
            sum(bool(equal[b * rows:(b + 1) * rows].all()) for b in range(bands))), "threshold": str(
                dedup.THRESHOLD), "band_chance": f"{1 - (1 - jaccard ** rows) ** bands:.6f}",
        "half_chance": f"{1 - (1 - 0.5 ** rows) ** bands:.4f}", "dropped_mirror": json.dumps(
            {key: dropped["insulin-mirror"][key]
             for key in ("id", "reason", "duplicate_of", "estimated_jaccard")})
    }


def _lines(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# ------------------------------------------------------------------------------------------------------------

def make_tokenizer(work: Path) -> Tokenizer:
    texts = [
        document.text for code in LANGUAGES
        for document in documents(work / "unique" / code / "kept").values()
    ]
    items = read_benchmark(DATA / "exam" / "Train")
    return train_sentencepiece(
        texts + [build_prompt(item, True) + build_target(item, True) for item in items], work / "tokenizer",
        VOCABULARY)


def merges(tokenizer: Tokenizer, word: str) -> list[list[str]]:
    """The pieces of a word after each merge: the neighbours whose union was learnt first are joined, until
    none can be.
    """
    rank = {piece: -score for piece, score, _ in tokenizer.core.model.pieces}
    parts, steps = list(word), [list(word)]
    while True:
        pairs = [(rank[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in rank]
        if not pairs:
            return steps
        i = min(pairs)[1]
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
        steps.append(list(parts))


def pieces(work: Path, tokenizer: Tokenizer) -> dict[str, str]:
    rows = []
    for text in (SENTENCE, IN_CHINESE, IN_JAPANESE):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        rows.append([
            text,
            len(text),
            len(ids),
            " ".join(shown(tokenizer.piece(i)) for i in ids[:12]) + (" ..." if len(ids) > 12 else "")
        ])
    ids = tokenizer.encode(SENTENCE)
    word = "▁hormone"
    steps = merges(tokenizer, word)
    assert steps[-1] == [tokenizer.piece(i) for i in tokenizer.encode("hormone")]
    return {
        "vocabulary": str(tokenizer.vocab_size), "tokenizer_texts": str(
            sum(len(documents(work / "unique" / code / "kept")) for code in LANGUAGES)),
        "pieces": table(["text", "characters", "tokens", "pieces"],
                        rows), "sentence": SENTENCE, "fingerprint": tokenizer.fingerprint[:12],
        "ids": table(["id", *map(str, ids)], [["piece", *(shown(tokenizer.piece(i)) for i in ids)]]),
        "merges": "\n".join(f"{number:>4}  " + "  ".join(step) for number, step in enumerate(steps))
    }


# ------------------------------------------------------------------------------------------------------------

def boundary(row: Row, tokenizer: Tokenizer, begin: int, end: int) -> str:
    """Part of a row as a table: what goes in, what should come out, which document, which position."""
    def piece(place: int, i: int) -> str:
        return "·" if i < 0 or row.document_ids[place] < 0 else shown(tokenizer.piece(int(i)))

    return table(
        ["place", *map(str, range(begin, end))],
        [["input", *(piece(i, row.input_ids[i]) for i in range(begin, end))],
         ["label", *(piece(i, row.labels[i])
                     for i in range(begin, end))], ["document", *row.document_ids[begin:end].tolist()],
         ["position", *row.positions[begin:end].tolist()]])


def stream(work: Path, tokenizer: Tokenizer) -> tuple[dict[str, str], dict[str, str]]:
    streams = [TokenStream(work / "streams" / code, tokenizer.fingerprint, verify=True) for code in LANGUAGES]
    english = streams[0]
    rows = PretrainRows(streams, SEQUENCE, seed=0)
    places = [(s, block, number) for s, layout in enumerate(rows.layouts) for block in range(layout.blocks)
              for number in range(layout.counts()[block])]
    numbers = {rows.locate(i): i for i in range(rows.size)}
    all_rows = [rows.row(numbers[place]) for place in places]
    first = next(row for row in all_rows if row.document_ids.max() > 0)  # one with several documents
    ends = np.asarray(english.ends).astype(int)
    names = list(documents(work / "unique" / "en" / "kept"))
    raw = english.ids[:8].tobytes()
    border = int(np.flatnonzero(np.diff(first.document_ids))[0]) + 1
    labels = [f"{LANGUAGES[s]} {number}" for s, _, number in places]
    counts = [sum(layout.counts()) for layout in rows.layouts]
    used = sum(int((row.document_ids >= 0).sum()) for row in all_rows)
    values = {
        "stream_tokens": str(english.tokens), "stream_documents": str(
            english.documents), "stream_dtype": english.meta["dtype"], "stream_bytes": str(
                english.ids[:].nbytes), "stream_hex": raw.hex(" "),
        "stream_first": ", ".join(str(int(i)) for i in english.ids[:8]), "stream_pieces": " ".join(
            shown(tokenizer.piece(int(i))) for i in english.ids[:8]), "stream_ends": ", ".join(
                f"{name} {end}" for name, end in zip(names[:3], ends)),
        "sequence": str(SEQUENCE), "row_border": str(border), "row_table": boundary(
            first, tokenizer, border - 4, border + 4), "rows_en": str(counts[0]), "rows_zh": str(counts[1]),
        "rows_all": str(rows.size), "row_supervised": str(int(
            (first.labels >= 0).sum())), "row_padding": str(rows.size * SEQUENCE - used),
        "row_order": ", ".join(labels[places.index(rows.locate(i))] for i in range(rows.size))
    }
    return values, {"stream.svg": stream_rows(all_rows, labels)}
