"""The output of OCR engines: plain text, hOCR and ALTO give lines with their positions."""
import pytest

from data_prep.sources.book_pages import read_ocr_text
from data_prep.sources.worker import Unreadable

HOCR = """<?xml version="1.0" encoding="UTF-8"?>
<html xmlns="http://www.w3.org/1999/xhtml"><body>
<div class='ocr_page' id='page_1' title='image "a.png"; bbox 0 0 1000 1400; ppageno 0'>
 <div class='ocr_carea' title="bbox 100 100 900 180"><p class='ocr_par'>
  <span class='ocr_line' title="bbox 100 100 900 130; baseline 0 -5; x_size 28">
   <span class='ocrx_word' title='bbox 100 100 200 130; x_wconf 96'>Heart</span
   ><span class='ocrx_word' title='bbox 210 100 400 130; x_wconf 90'>failure</span></span>
  <span class='ocr_line' title="bbox 100 150 300 180"><span class='ocrx_word'>is &amp; was</span></span>
 </p></div></div>
<div class='ocr_page' title='bbox 0 0 1000 1400'></div></body></html>"""
ALTO = """<alto xmlns="http://www.loc.gov/standards/alto/ns-v4#"><Layout><Page><PrintSpace><TextBlock>
<TextLine HPOS="100" VPOS="100" WIDTH="800" HEIGHT="30"><String CONTENT="Heart"/><SP/><String CONTENT="fail"/>
<HYP CONTENT="-"/></TextLine>
<TextLine HPOS="100" VPOS="150" WIDTH="200" HEIGHT="30"><String CONTENT="ure"/></TextLine>
</TextBlock></PrintSpace></Page></Layout></alto>"""


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("a.hocr", HOCR, [[("Heart failure", 100, 900, 130, 28), ("is & was", 100, 300, 180, 30)], []]),
    ("a.hocr", HOCR.replace("page'", "page a'").replace(" &amp;", "&nbsp;&amp;").replace("<p ", "<br><p "),
     [[("Heart failure", 100, 900, 130, 28), ("is & was", 100, 300, 180, 30)], []]),
    ("a.hocr", HOCR.replace("900 130; baseline 0 -5; x_size 28", "130 900"),  # written downwards
     [[("Heart failure", 100, 900, -100, 30), ("is & was", 100, 300, 180, 30)], []]),
    ("a.xml", ALTO, [[("Heart fail-", 100, 900, 130, 30), ("ure", 100, 300, 180, 30)]]),
    ("a.txt", "\ufeffПервая\r\nстраница\f\n Вторая\n\f",
     [[("Первая", 0, 6, 1, 1), ("страница", 0, 8, 2, 1)], [("Вторая", 1, 7, 2, 1)]]),
    ("a.txt", "\udcff", None), ("a.xml", "<html><body/></html>", None),
    ("a.xml", ALTO.replace('"800"', '"800,5"'), None), ("a.hocr", "", None)])
def test_pages_and_lines_are_read_or_the_file_is_unreadable(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content.encode(errors="surrogateescape"))
    if expected is None:
        with pytest.raises(Unreadable, match="neither UTF-8 text, hOCR nor ALTO"):
            read_ocr_text([path])
    else:
        assert [page.lines for page in read_ocr_text([path])] == expected
