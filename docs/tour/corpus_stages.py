"""The tour's first half: the raw pages of docs/tour/data through clean, filter, deduplication, tokenizer and
stream, each by its own command.

In: a folder to work in. Out: what the page shows of each stage, by the names in template.md (a name that ends
in .svg is a drawing); and the folder, filled.
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


def shown(*pieces: str) -> str:
    """Pieces as code, with line ends to be seen."""
    return " ".join("`" + piece.replace("\n", "\\n") + "`" for piece in pieces)


def wrapped(text: str, width: int = 118, indent: str = "", end: str = "\n") -> str:
    """Long lines broken between words, so that a page need not be moved sideways."""
    lines = (textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False,
                           break_on_hyphens=False) or [""] for line in text.split("\n"))
    return end.join(itertools.chain(*lines))


def typed(command: list[str]) -> str:
    """A command as it is typed, over several lines."""
    return wrapped(" ".join(command), 110, "    ", " \\\n")


def documents(folder: Path) -> dict[str, Document]:
    return {document.id: document for path in find_inputs([folder]) for document in read_documents(path)}


def run(work: Path) -> dict[str, object]:
    shutil.rmtree(work, ignore_errors=True)
    for code in LANGUAGES:
        clean.main([f"{DATA}/web/{code}.jsonl", "--language", code, "--mask-personal",
                    "--out", f"{work}/clean/{code}"])
        filter_medical.main([f"{work}/clean/{code}/kept", "--language", code,
                             "--out", f"{work}/filtered/{code}"])
        dedup.main([f"{work}/filtered/{code}/kept", "--out", f"{work}/unique/{code}"])
    tokenizer = make_tokenizer(work)
    for code in LANGUAGES:
        tokenize_corpus.main([f"{work}/unique/{code}/kept", "--tokenizer", f"{work}/tokenizer",
                              "--out", f"{work}/streams/{code}"])
    return (raw_and_clean(work) | filtering(work) | duplicates(work) | pieces(work, tokenizer)
            | stream(work, tokenizer))


def raw_and_clean(work: Path) -> dict[str, object]:
    line = next(line for line in (DATA / "web" / "en.jsonl").read_text(encoding="utf-8").splitlines()
                if json.loads(line)["id"] == PAGE)
    after = documents(work / "clean" / "en")[PAGE].text
    return {"raw_line": wrapped(line), "raw_characters": len(json.loads(line)["text"]),
            "clean_characters": len(after), "clean_end": after[after.index("Questions"):]}


def filtering(work: Path) -> dict[str, object]:
    english, page = get_language("en"), documents(work / "clean" / "en")[PAGE]
    matcher = Matcher(english)
    decision, counts = matcher.explain(page.text)
    letters = sum(map(str.isalnum, page.text))
    # The spelling in the list and the letters of the text that it covers: a stem covers itself, not the
    # ending after it.
    rows, covered = [], 0
    for term, count in counts.items():
        number = list(map(dictionary_form, english.medical_words)).index(term)
        size = max(len(pattern.letters) for pattern in default_patterns(english)
                   if pattern.word == number and pattern.letters in page.text.lower())
        rows.append([f"`{english.medical_words[number]}`", count, f"{count} x {size} = {count * size}"])
        covered += count * size
    assert decision.hits == len(rows) and abs(decision.density - covered / letters) < 1e-9
    decisions = []
    for code in LANGUAGES:
        rule = Matcher(get_language(code))
        for document in documents(work / "clean" / code).values():
            judged, words = rule.explain(document.text)
            few = "too few different words" if judged.hits < rule.min_hits else "too thin"
            decisions.append([document.id, judged.hits, f"{judged.density:.4f}",
                              "kept" if judged.medical else f"dropped: {few}",
                              ", ".join(list(words)[:5]) + (", ..." if len(words) > 5 else "")])
    official, official_words = Matcher(english, "official").explain(page.text)
    chinese, japanese = Matcher(get_language("zh")), Matcher(get_language("ja"))
    in_japanese, japanese_words = japanese.explain(IN_JAPANESE)
    return {
        "filter_terms": table(["term in `en.py`", "times", "letters it covers"], rows),
        "filter_all": table(["page", "MKC", "DENS", "decision", "words"], decisions),
        "mkc": decision.hits, "dens": decision.density, "covered": covered, "letters": letters,
        "min_hits": matcher.min_hits, "min_density": matcher.min_density,
        "raw_mkc": matcher.explain(documents(DATA / "web" / "en.jsonl")[PAGE].text)[0].hits,
        "official_mkc": official.hits, "official_dens": official.density,
        "official_words": ", ".join(official_words), "official_min_hits": english.official_min_hits,
        "official_verdict": "kept" if official.medical else "dropped",
        "zh_min_hits": chinese.min_hits, "zh_min_density": chinese.min_density,
        "ja_sentence": IN_JAPANESE, "ja_mkc": in_japanese.hits, "ja_dens": in_japanese.density,
        "ja_words": ", ".join(japanese_words), "ja_min_hits": japanese.min_hits}


def duplicates(work: Path) -> dict[str, object]:
    kept = documents(work / "filtered" / "en")
    signed = minhash.signatures([kept[name].text for name in NAMES])
    one, other = (minhash.shingles(kept[name].text) for name in NAMES[:2])
    jaccard = minhash.jaccard(*(minhash.shingle_hashes(kept[name].text) for name in NAMES[:2]))
    assert abs(jaccard - len(one & other) / len(one | other)) < 1e-9
    bands, rows = dedup.band_shape(dedup.THRESHOLD, minhash.PERMUTATIONS)
    equal = signed.minima[0] == signed.minima[1]
    dropped = {}
    for path in (work / "unique" / "en" / "dropped").iterdir():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            dropped |= {document["id"]: document for document in map(json.loads, file)}
    mirror = dropped["insulin-mirror"]
    assert signed.exact[2] == signed.exact[3] and dropped["iron"]["duplicate_of"] == "iron-again"
    assert mirror["duplicate_of"] == PAGE
    signatures = [[name, len(minhash.token_hashes(kept[name].text).hashes), f"`{signed.exact[i]:016x}`",
                   " ".join(f"{number:04x}" for number in signed.minima[i, :6]) + " ..."]
                  for i, name in enumerate(NAMES)]
    return {
        "signatures": table(["page", "tokens", "hash of the normal form", "first 6 of the signature's bins"],
                            signatures),
        "shingle_words": minhash.SHINGLE_WORDS,
        "shingle": " ".join(next(s for s in sorted(one) if s[:2] == ("insulin", "lowers"))),
        "shingles_page": len(one), "shingles_mirror": len(other), "shingles_shared": len(one & other),
        "shingles_any": len(one | other), "jaccard": jaccard, "threshold": dedup.THRESHOLD,
        "bins": minhash.PERMUTATIONS, "bins_equal": equal.sum(), "bins_share": equal.mean(),
        "bands": bands, "band_rows": rows,
        "bands_equal": sum(equal[b * rows:(b + 1) * rows].all() for b in range(bands)),
        "band_chance": 1 - (1 - jaccard ** rows) ** bands, "half_chance": 1 - (1 - 0.5 ** rows) ** bands,
        "dropped_mirror": json.dumps({key: mirror[key] for key in ("id", "reason", "duplicate_of",
                                                                   "estimated_jaccard")})}


def make_tokenizer(work: Path) -> Tokenizer:
    texts = [document.text for code in LANGUAGES
             for document in documents(work / "unique" / code / "kept").values()]
    items = read_benchmark(DATA / "exam" / "Train")
    texts += [build_prompt(item, True) + build_target(item, True) for item in items]
    return train_sentencepiece(texts, work / "tokenizer", VOCABULARY)


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


def pieces(work: Path, tokenizer: Tokenizer) -> dict[str, object]:
    rows = []
    for text in (SENTENCE, IN_CHINESE, IN_JAPANESE):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        rows.append([text, len(text), len(ids),
                     shown(*map(tokenizer.piece, ids[:12])) + (" ..." if len(ids) > 12 else "")])
    ids = tokenizer.encode(SENTENCE)
    steps = merges(tokenizer, "▁hormone")
    assert steps[-1] == [tokenizer.piece(i) for i in tokenizer.encode("hormone")]
    return {
        "vocabulary": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint[:12], "sentence": SENTENCE,
        "tokenizer_texts": sum(len(documents(work / "unique" / code / "kept")) for code in LANGUAGES),
        "pieces": table(["text", "characters", "tokens", "pieces"], rows),
        "ids": table(["id", *map(str, ids)], [["piece", *(shown(tokenizer.piece(i)) for i in ids)]]),
        "merges": "\n".join(f"{number:>4}  " + "  ".join(step) for number, step in enumerate(steps))}


def boundary(row: Row, tokenizer: Tokenizer, begin: int, end: int) -> str:
    """Part of a row as a table: what goes in, what should come out, which document, which position."""
    def cells(ids: np.ndarray) -> list[str]:
        pairs = zip(ids[begin:end].tolist(), row.document_ids[begin:end])
        return ["·" if i < 0 or document < 0 else shown(tokenizer.piece(i)) for i, document in pairs]

    return table(["place", *map(str, range(begin, end))],
                 [["input", *cells(row.input_ids)], ["label", *cells(row.labels)],
                  ["document", *row.document_ids[begin:end]], ["position", *row.positions[begin:end]]])


def stream(work: Path, tokenizer: Tokenizer) -> dict[str, object]:
    streams = [TokenStream(work / "streams" / code, tokenizer.fingerprint, verify=True) for code in LANGUAGES]
    english = streams[0]
    rows = PretrainRows(streams, SEQUENCE, seed=0)
    places = [(s, block, number) for s, layout in enumerate(rows.layouts) for block in range(layout.blocks)
              for number in range(layout.counts()[block])]
    labels = {place: f"{LANGUAGES[place[0]]} {place[2]}" for place in places}
    order = [rows.locate(i) for i in range(len(places))]
    all_rows = [rows.row(order.index(place)) for place in places]
    first = next(row for row in all_rows if row.document_ids.max() > 0)  # one with several documents
    border = int(np.flatnonzero(np.diff(first.document_ids))[0]) + 1
    begin = english.ids[:8]
    names = list(documents(work / "unique" / "en" / "kept"))
    counts = [sum(layout.counts()) for layout in rows.layouts]
    return {
        "stream_tokens": english.tokens, "stream_documents": english.documents,
        "stream_dtype": english.meta["dtype"], "stream_bytes": english.ids[:].nbytes,
        "stream_hex": begin.tobytes().hex(" "), "stream_first": ", ".join(map(str, begin)),
        "stream_pieces": shown(*(tokenizer.piece(int(i)) for i in begin)),
        "stream_ends": ", ".join(f"{name} {end}" for name, end in zip(names[:3], english.ends)),
        "sequence": SEQUENCE, "row_border": border,
        "row_table": boundary(first, tokenizer, border - 4, border + 4),
        "row_supervised": (first.labels >= 0).sum(),
        "row_padding": sum((row.document_ids < 0).sum() for row in all_rows),
        "row_order": ", ".join(labels[place] for place in order),
        "rows_en": counts[0], "rows_zh": counts[1], "rows_all": len(places),
        "stream.svg": stream_rows(all_rows, list(labels.values()))}
