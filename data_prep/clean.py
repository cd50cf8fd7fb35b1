"""Cleaning steps beyond the paper: drops documents in other languages, masks e-mails and phone numbers.

    python -m data_prep.clean IN... --language fr --out OUT [--language_id] [--mask_personal]

In:  documents (data_prep/documents.py). Out: OUT/kept, OUT/dropped with `reason`, OUT/funnel.json. Without
either option documents pass unchanged, in the format that the other steps write.

1. A document that names another language than --language is dropped.
2. --language_id (extra langid): py3langid gives each of 140 languages a probability, from samples of a long
   text. A document stays if its language has at least LIKELY, variants of it (`language_id` in its file)
   counted together (measured in docs/corpus.md). Texts below SHORTEST_BYTES say too little and stay.
3. --mask_personal: data_prep/filters/personal_data.py.

DIFFERS: the official code has neither; it trusts CulturaX for the language of a document.
"""
from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from data_prep.documents import Document
from data_prep.filters.language_codes import find_language
from data_prep.filters.personal_data import mask_personal
from data_prep.pipeline.shards import ShardWriter, add_shard_arguments, run_step
from mmed.languages import all_languages, get_language
from mmed.utils.errors import Parser, UserError, main_guard, require_extra

VERSION = 6  # raise it when the same document gives another result
LIKELY = 0.1
SHORTEST_BYTES = 60
PIECES, PIECE_CHARACTERS = 4, 250  # samples of a long text


@functools.cache
def _identifier() -> Any:
    langid = require_extra("py3langid.langid", "langid")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def identify_language(text: str, code: str) -> tuple[float, str]:
    """Return (probability that the text is in language `code`, most likely language)."""
    step = max(PIECE_CHARACTERS, len(text) // PIECES)
    text = "".join(text[start:start + PIECE_CHARACTERS] for start in range(0, len(text), step))
    if 2 * sum(map(str.isupper, text)) > sum(map(str.isalpha, text)):
        text = text.lower()  # a list of drug names in capitals looks like no language
    probability = dict(_identifier().rank(text))
    variants = get_language(code).language_id or (code,)
    return sum(probability.get(name, 0.0) for name in variants), max(probability, key=probability.__getitem__)


def clean_shard(documents: Iterator[Document], shard: ShardWriter, options: dict[str, Any]) -> None:
    code = options["language"]
    for document in documents:
        before = len(document.text)
        if document.language != code:
            shard.drop(document, f"language is not {code}")
            continue
        if options["language_id"] and len(document.text.encode()) < SHORTEST_BYTES:
            shard.funnel.details["too short for language identification"] += 1
        elif options["language_id"]:
            probability, likeliest = identify_language(document.text, code)
            if probability < LIKELY:
                shard.drop(document, f"text is not in {code}", identified=likeliest,
                           probability=round(probability, 4))
                continue
        if options["mask_personal"]:
            document.text, masked = mask_personal(document.text)
            shard.funnel.details["documents masked"] += bool(masked)
            shard.funnel.details.update({f"{kind} masked": count for kind, count in masked.items()})
        shard.keep(document, characters_in=before)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.clean",
                    description="Drop documents in other languages and mask personal data.")
    add_shard_arguments(parser)
    add = parser.add_argument
    add("--language", required=True, help="language code or name; drop documents labelled otherwise")
    add("--language_id", action="store_true", help="detect the language of each text; drop all others")
    add("--mask_personal", action="store_true",
        help="replace e-mail addresses and telephone numbers by <EMAIL> and <PHONE>")
    given = parser.parse_args(arguments)
    code = find_language(given.language).code
    files = [(language.language_id, language.phone_words) for language in all_languages()]
    options = {"language": code, "language_id": given.language_id, "mask_personal": given.mask_personal,
               "files": files, "version": VERSION}
    if given.language_id:
        if code not in _identifier().labels:
            raise UserError(f"--language_id: py3langid does not know the language {code!r}; omit the option")
        options["model"] = require_extra("py3langid", "langid").__version__
    return run_step(clean_shard, "clean", options, given, f"clean {code}")


if __name__ == "__main__":
    main_guard(main)
