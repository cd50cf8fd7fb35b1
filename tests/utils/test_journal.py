"""A journal of finished rounds: one writer, text that UTF-8 cannot carry, damage named by its line."""
import json

import pytest

from mmed.utils.errors import UserError
from mmed.utils.journal import Journal, sealed_line


def test_a_journal_has_one_writer_and_names_its_damage(tmp_path):
    journal = Journal(tmp_path / "x", {})
    with pytest.raises(UserError, match="another process"):
        Journal(tmp_path / "x", {})
    journal.add(0, [{"text": "lone \ud800 surrogate\u2028"}])
    journal.finish()
    assert json.loads((tmp_path / "x").read_bytes()) == {"text": "lone ? surrogate\u2028"}
    for line in ('{"round": 0, "rows": [', sealed_line({"round": "x", "rows": []}).strip(), "[]",
                 '{"round": 0, "rows": [{"correct": true}], "crc32": "00000000"}'):
        facts = sealed_line({"facts": {}})
        (tmp_path / "y.partial").write_text(f'{facts}{line}\n{facts}')
        with pytest.raises(UserError, match=r"y\.partial:2: damaged"):
            Journal(tmp_path / "y", {})
