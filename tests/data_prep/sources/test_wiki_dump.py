"""Wikipedia-style dumps: articles without markup, everything that is none counted, hostile markup in linear time."""
import bz2
import gzip
import json
import random
import time
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from data_prep.documents import Document, Funnel, find_inputs, read_documents, shard_name
from data_prep.filter_medical import main as filter_medical
from data_prep.record_files import DAMAGED
from data_prep.sources import wiki_dump
from data_prep.sources.wiki_dump import plain_text
from mmed.utils.errors import UserError

SEED = random.SystemRandom().randrange(1 << 32)
print(f"seed {SEED}")
DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "text"

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="{language}">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <base>https://{language}.wikipedia.org/wiki/Main</base>
    <namespaces>
      <namespace key="0" case="first-letter" />
      <namespace key="6" case="first-letter">{file}</namespace>
      <namespace key="14" case="first-letter">{category}</namespace>
    </namespaces>
  </siteinfo>
"""


def page(title: str, text: str, number: int = 1, ns: int = 0, more: str = "", revisions: int = 1) -> str:
    old = "<revision><id>1</id><text>an old one</text></revision>" * (revisions - 1)
    return (f"  <page>\n    <title>{escape(title)}</title>\n    <ns>{ns}</ns>\n    <id>{number}</id>\n{more}    {old}<revision>\n"
            f'      <id>9</id>\n      <text bytes="{len(text)}" xml:space="preserve">{escape(text)}</text>\n    </revision>\n  </page>\n')


def dump(*pages: str, language: str = "en", file: str = "File", category: str = "Category") -> bytes:
    return (HEAD.format(language=language, file=file, category=category) + "".join(pages) + "</mediawiki>\n").encode()


def read(path: Path, **more) -> tuple[list[Document], dict[str, int], Funnel]:
    funnel = Funnel()
    documents = list(read_documents(path, funnel, **more))
    return documents, {reason: entry["documents"] for reason, entry in funnel.dropped.items()}, funnel


# ---- markup -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("markup", "text"), [
    ("'''Scurvy''' is a ''disease''.", "Scurvy is a disease."),
    ("l''''armonium''' and '''''both''''' and rock 'n' roll", "l'armonium and both and rock 'n' roll"),
    ("a [[lung]], [[heart|the heart's]], [[lung]]s, [[Lung (organ)#Use|use]]", "a lung, the heart's, lungs, use"),
    ("x[[File:a.jpg|thumb|A [[gum]] of '''x''', {{small|b}}.]]y [[Category:Z]] [[:Category:Z]] [[fr:Scorbut]] [[zh-yue:x]]", "xy Category:Z"),
    ("see [https://x.example/a?b=c the site] and [https://x.example] or https://x.example/d", "see the site and or https://x.example/d"),
    ("a<ref>{{cite|title=[[x]]}}</ref> b<ref name=\"q\" /> c<ref name=q>d</ref>.<!-- note -->", "a b c."),
    ("{{Infobox disease\n| name = x\n| image = [[File:a.png]]\n| table = {|\n|a\n|}\n}}\n'''X''' is", "X is"),
    ("{{lang|la|scorbutus}}, {{nowrap|5 mg}}, {{convert|3|km|mi|abbr=on}}, {{unité|25|mg}}, {{仮リンク|壊血病|en|Scurvy}}", "scorbutus, 5 mg, 3 km, 25 mg, 壊血病"),
    ("X ({{IPA|x}}; {{lang-fr|y}}) and Y （）", "X and Y"),
    ("x<sub>2</sub>O<sup>+</sup>, 5&nbsp;&mu;g &lt;5 &amp;amp; a<br/>b", "x2O+, 5\xa0μg <5 &amp; a\nb"),
    ("== A ==\ntext\n=== B ===\n== C ==\n* one\n** two\n# three\n; four\n: five", "A\ntext\n\nC\none\ntwo\nthree\nfour\nfive"),
    ("{| class=w\n! a\n|-\n| b || {{c}}\n{|\n| inner\n|}\n|}\nafter", "after"),
    ("<math>x^2</math>E<gallery>\nFile:a.jpg|b\n</gallery> <table><tr><td>x</td></tr></table>", "E"),
    ("-{zh-hans:信息;zh-hant:資訊}-与-{H|zh-cn:a}--{他}-", "信息与他"),
    ("__NOTOC__ __БЕЗ_ОГЛ__\na\n\n\n\nb", "a\n\nb"),
    ("<nowiki>[[x]]</nowiki> <code>y < z</code>", "x y < z"),
    ("open {{ brace and [[link and <ref>x", "open  brace and link and x".replace("  ", " ")),
    ("closed }} and ]] and |} and --> x", "closed and and |} and --> x"),
    ("{{a|{{b|{{c}}}}}}d", "d"), ("", ""), ("{{x}}", ""), ("a {{x}}, b {{y}}.", "a, b."),
])
def test_markup_is_taken_away_and_text_stays(markup, text):
    assert plain_text(markup) == text


def test_file_and_category_names_of_the_dump_are_used(tmp_path):
    (tmp_path / "d.xml").write_bytes(dump(page("X", "a [[Bestand:x.jpg|b]][[Categorie:Y]]"), file="Bestand", category="Categorie", language="nl"))
    (document,), _, _ = read(tmp_path / "d.xml")
    assert document.text == "a" and document.language == "nl" and plain_text("a[[Categorie:Y]]") == "aCategorie:Y"


def test_ordinary_prose_is_left_as_it_is():
    """Text without markup, of words in six scripts, goes through unchanged."""
    rng = random.Random(SEED)
    for _ in range(300):
        words = ["".join(chr(rng.choice([*range(97, 123), *range(0x430, 0x450), *range(0x4E00, 0x4E80), *range(0x3042, 0x3080)]))
                         for _ in range(rng.randrange(1, 9))) for _ in range(rng.randrange(1, 60))]
        text = "".join(word + rng.choice([" ", ", ", ". ", " - ", " (", ") ", "; ", "\n\n", "/", "’"]) for word in words[:-1]) + words[-1]
        expected = "\n".join(" ".join(line.split()) for line in text.split("\n"))
        assert plain_text(expected).replace("\n\n", "\n") == expected.replace("\n\n", "\n"), SEED


@pytest.mark.skipif(not DATA.exists(), reason="needs the shared real data")
def test_real_articles_without_markup_come_through():
    """What Wikiextractor made of real articles has no markup left: less than one character in a thousand may change."""
    for language in ("en", "zh"):
        path, = (DATA / language / "raw").glob("wikiextractor_*.gz")
        text = "".join(line for line in gzip.decompress(path.read_bytes()).decode("utf-8", "replace").splitlines(keepends=True)
                       if not line.startswith(("<doc", "</doc")))[:300_000]
        kept = plain_text(text)
        assert abs(len("".join(kept.split())) - len("".join(text.split()))) < len(text) / 200, language


@pytest.mark.parametrize("piece", [
    "{{", "[[", "{|\n", "<ref>", "''", "{{[[<b>", "=", "==\n", "<!--", "-{", "[http://a ", "(", "( ", "__a", "<", "&", "|}\n", "}}", "]]", "*", "' ", "<ref name=",
    "<math>x</ref>", "{{a|[[b|", "-{a;b:c", "{{lang|a|", "[[a|", "a_b__", "\n", " ", "<table><tr>", "== a ==\n", "{{nowrap|" + "[[x|y]]",
])
def test_hostile_markup_takes_linear_time(piece):
    times = []
    for size in (100_000, 200_000):
        text = (piece * (size // len(piece) + 1)) + "}}]]" * (size // 40)
        start = time.process_time()
        plain_text(text)
        times.append(time.process_time() - start)
    assert times[1] < 3, times


# ---- dumps ------------------------------------------------------------------------------------------------------------


def test_articles_of_a_dump_are_documents_and_the_rest_is_counted(tmp_path):
    pages = [page("Scurvy (disease)", "'''Scurvy''' is bad.", 12), page("Template:X", "x", 13, ns=10), page("Old", "#REDIRECT [[Scurvy]]", 14, more='    <redirect title="Scurvy" />\n'),
             page("A & B", "second\n\n== Notes ==\n{{reflist}}", 15, revisions=3), page("Empty", "{{only}}", 16)]
    path = tmp_path / "enwiki.xml"
    path.write_bytes(dump(*pages))
    documents, reasons, funnel = read(path, source="corpus", licence="CC BY-SA 4.0")
    url = "https://en.wikipedia.org/wiki/"
    assert documents == [
        Document("Scurvy is bad.", "en", "corpus", "12", {"title": "Scurvy (disease)", "url": url + "Scurvy_(disease)", "licence": "CC BY-SA 4.0"}),
        Document("second", "en", "corpus", "15", {"title": "A & B", "url": url + "A_&_B", "licence": "CC BY-SA 4.0"})]
    assert reasons == {"page is no article": 1, "redirect to another page": 1, "empty text": 1}
    line = path.read_text().splitlines().index("    <title>Template:X</title>")
    assert funnel.dropped["page is no article"]["examples"] == [f"{path}:{line}"]
    list(read_documents(path, Funnel(), strict=False))
    with pytest.raises(UserError, match="empty text"):  # strict: what is broken stops the run; redirects are no fault
        list(read_documents(path, strict=True))


def test_packed_dumps_and_their_published_parts_are_read_as_plain_ones_are(tmp_path):
    content = dump(*[page(f"T{number}", f"text {number} " * 50, number) for number in range(200)])
    (tmp_path / "plain.xml").write_bytes(content)
    expected = [(document.id, document.text) for document in read(tmp_path / "plain.xml")[0]]
    assert len(expected) == 200
    half = len(content) // 2
    for name, data in (("a.xml.gz", gzip.compress(content)), ("b.xml.bz2", bz2.compress(content)), ("c.xml-p1p200.bz2", bz2.compress(content)),
                       ("multistream.xml.bz2", bz2.compress(content[:half]) + bz2.compress(content[half:]))):
        (tmp_path / name).write_bytes(data)
        assert [(document.id, document.text) for document in read(tmp_path / name)[0]] == expected, name
    assert len(find_inputs([tmp_path])) == 5 and shard_name(Path("frwiki-pages-articles1.xml-p1p30.bz2")) == "frwiki-pages-articles1.xml-p1p30"


def test_a_broken_page_is_one_dropped_document_and_not_the_end(tmp_path):
    good = [page(f"T{number}", f"text {number}", number) for number in range(6)]
    broken = [good[0], good[1].replace("</title>", "</titel>"), good[2], "  <page>\n    <title>cut</title>\n", good[3],
              "  <page>&undeclared;</page>\n", good[4]]
    path = tmp_path / "d.xml"
    path.write_bytes(dump(*broken).replace(b"text 4", b"text \xff\xfe 4") + b"trailing <page> text that never ends")
    documents, reasons, _ = read(path)
    assert [document.id for document in documents] == ["0", "2", "3"]
    assert reasons == {"page is not well-formed XML": 3, "<page> is not closed": 2}
    with pytest.raises(UserError, match=r"d\.xml:\d+: page is not well-formed XML"):
        list(read_documents(path, strict=True))


def test_bombs_and_cut_files_are_counted(tmp_path, monkeypatch):
    content = dump(*[page(f"T{number}", "text " * 400, number) for number in range(60)])
    (tmp_path / "cut.xml.bz2").write_bytes(bz2.compress(content[:60_000]) + bz2.compress(content[60_000:])[:-200])
    documents, reasons, _ = read(tmp_path / "cut.xml.bz2")
    assert 20 < len(documents) < 60 and reasons[DAMAGED] == 1
    bomb = HEAD.format(language="en", file="File", category="C").replace(
        "<mediawiki", '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>\n<mediawiki')
    (tmp_path / "entities.xml").write_text(bomb + page("T", "x").replace(">x<", ">&b;<") + page("U", "fine", 2) + "</mediawiki>")
    documents, reasons, _ = read(tmp_path / "entities.xml")
    assert [document.id for document in documents] == ["2"] and reasons == {"page is not well-formed XML": 1}
    monkeypatch.setattr(wiki_dump, "MAX_PAGE_BYTES", 1 << 20)
    (tmp_path / "huge.xml.gz").write_bytes(gzip.compress(dump(page("T", "x" * (4 << 20)), page("U", "fine", 2))))
    documents, reasons, _ = read(tmp_path / "huge.xml.gz")
    assert [document.id for document in documents] == ["2"] and reasons == {"page longer than 1 MiB": 1}
    (tmp_path / "deep.xml").write_bytes(dump(page("T", "a").replace("<revision>", "<a>" * 50_000), page("U", "fine", 2)))
    assert [document.id for document in read(tmp_path / "deep.xml")[0]] == ["2"]
    (tmp_path / "other.xml").write_bytes(b"<TEI>" + b"<p>no dump</p>\n" * 300_000)
    assert read(tmp_path / "other.xml")[1] == {"no <page> of a MediaWiki dump in this file": 1}


def test_pages_at_every_border_of_a_block_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(wiki_dump, "BLOCK", random.Random(SEED).choice([1, 5, 7, 13, 64, 100]))
    (tmp_path / "d.xml").write_bytes(dump(*[page(f"T{number}", "é" * number, number) for number in range(1, 30)]))
    assert [(document.id, document.text) for document in read(tmp_path / "d.xml")[0]] == [(str(number), "é" * number) for number in range(1, 30)], SEED


def test_a_dump_goes_through_the_filter(tmp_path):
    medical = "'''Scurvy''' is a [[disease]]: the [[patient]] has fatigue, [[infection]]s, fever. Treatment is with a [[drug|vitamin]] by a physician in hospital."
    (tmp_path / "d.xml.bz2").write_bytes(bz2.compress(dump(page("Scurvy", medical, 1), page("Rock", "A [[rock]] is a stone.", 2))))
    filter_medical([str(tmp_path / "d.xml.bz2"), "--language", "en", "--out", str(tmp_path / "out"), "--source", "corpus", "--licence", "CC BY-SA 4.0"])
    kept, = [json.loads(line) for line in gzip.open(tmp_path / "out" / "kept" / "d.jsonl.gz", "rt")]
    assert kept["id"] == "1" and kept["source"] == "corpus" and kept["meta"]["licence"] == "CC BY-SA 4.0" and "[[" not in kept["text"]
