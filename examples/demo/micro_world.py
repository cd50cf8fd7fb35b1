"""The synthetic six-language world of the demo: fictional diseases, drugs, organs and symptoms, and ordinary
life around them.

In: a seed. Out, below `--out`, the same bytes for the same seed:

    raw/web/<code>.jsonl      web pages as a crawl finds them: ordinary and medical mixed, with copies and
                              near-copies among them
    raw/books/<code>.jsonl    pages of medical books
    base/<code>.jsonl         ordinary text with pages of exercises, for the base model; nothing medical
    exercises/<English name>.jsonl                 exam items on ordinary things and on terms, which the base
    model is taught to answer
    school/English.jsonl                           those on ordinary things in English, for the first lessons
    MMedBench/{Train,Test}/<English name>.jsonl    exam items; a disease of Test is in no item of Train
    world.json                every disease with its facts and its half, for checking
                              nothing leaks

None of it exists: the names are made of syllables, so nothing can be taken for medical advice and no model
can know it beforehand. A fact (the drug of a disease) is stated in all six languages, in several paraphrases;
English, French and Spanish share one spelling. What lets a model of a million parameters sit the exam after
so short a training: names stand between spaces and become single pieces; a rationale begins with a sentence
of the corpus, so that recalling is the same next-token prediction in both; then it goes through the options
one by one and says of each whether it is the one just named, which is practised on ordinary things in the
base text. (Naming the letter at once needs two attention layers to work together, which models of this size
learn too late; see docs/demo.md.)

    python -m examples.demo.micro_world --out demo/world --seed 0
"""
from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from examples.demo.micro_world_words import ENDINGS, SCRIPTS, SYLLABLES, WORDS
from mmed.prompts import ExamItem, build_prompt, build_target
from mmed.utils.errors import Parser, UsageError, main_guard
from mmed.utils.files import atomic_write, write_json

DISEASES = 32  # half of them for Test
ORGANS = 6
VALUES = 12  # drugs and symptoms each; shared by both halves, so that an option list gives nothing away
# Few, because how soon a model learns to compare names depends on how many there are: with 200 different ones
# in all scripts
# after some 700 steps, with 1,000 not after 1,600.
PEOPLE, TOWNS, THINGS = 16, 12, 16
KNOWN_PEOPLE = 12  # of whom the base text says where they live and what they like
LETTERS = "ABCD"
KINDS = ("drug", "symptom")

Name = tuple[str, str, str, str]  # one spelling a script


@dataclass
class World:
    """All names and all facts; names are indices into the lists, so that a fact is the same in every
    language.
    """

    names: dict[str, list[Name]]  # "disease", "drug", ... -> spellings
    facts: dict[str, list[int]]  # "drug" -> for each disease the index of its drug
    homes: list[int]  # for each known person the town
    likes: list[int]  # for each known person the noun
    test: list[int]  # diseases of the Test half

    def name(self, kind: str, index: int, language: str) -> str:
        return self.names[kind][index][SCRIPTS[language]]


def make_world(seed: int) -> World:
    """Draw names without a repetition, and facts so that every value serves equally many diseases of either
    half.
    """
    rng = random.Random(f"world {seed}")
    stems = list(itertools.product(range(len(SYLLABLES)), repeat=2))
    rng.shuffle(stems)
    names: dict[str, list[Name]] = {}
    for kind, count in (("disease", DISEASES), *((kind, VALUES) for kind in KINDS), ("organ", ORGANS),
                        ("person", PEOPLE), ("town", TOWNS)):
        names[kind] = []
        while len(names[kind]) < count:
            first, second = stems.pop()
            if first != second:
                names[kind].append(
                    tuple((SYLLABLES[first][s] + SYLLABLES[second][s]).capitalize() + ENDINGS[kind][s]
                          for s in range(4)))
    order = list(range(DISEASES))
    rng.shuffle(order)
    half = DISEASES // 2
    facts = {}
    for kind in KINDS:
        facts[kind] = [0] * DISEASES
        for diseases in (order[:half], order[half:]):
            for disease, value in zip(diseases, _even(rng, VALUES, len(diseases)), strict=True):
                facts[kind][disease] = value
    return World(names, facts, _even(rng, TOWNS, KNOWN_PEOPLE), _even(rng, THINGS, KNOWN_PEOPLE),
                 sorted(order[:half]))


def _even(rng: random.Random, values: int, count: int) -> list[int]:
    """`count` draws of range(values) in which no value comes twice more often than another."""
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += rng.sample(range(values), min(values, count - len(drawn)))
    return drawn


# ------------------------------------------------------------------------------------------------------------
# Text


def fact_sentence(world: World, language: str, kind: str, disease: int, form: int) -> str:
    """One fact in one of its paraphrases."""
    return WORDS[language]["relations"][kind][form].format(
        V=world.name(kind, world.facts[kind][disease], language))


def general_prose(world: World, language: str, count: int, rng: random.Random) -> list[str]:
    """Sentences of medical prose that tell no fact."""
    organ = world.name("organ", rng.randrange(ORGANS), language)
    return [sentence.format(O=organ) for sentence in rng.sample(WORDS[language]["medical"], count)]


def medical_page(world: World, language: str, disease: int, prose: int, rng: random.Random) -> str:
    """A short page about one disease: its name, then each fact in one of its paraphrases, then `prose`
    sentences of general prose.

    The name comes once and so does each fact: a second mention could be copied from the first, and what can
    be copied is not learnt by heart. An exam has the same form, the name in the question and the fact in the
    rationale.
    """
    words = WORDS[language]
    facts = [fact_sentence(world, language, kind, disease, rng.randrange(len(words["relations"][kind])))
             for kind in rng.sample(KINDS, len(KINDS))]
    name = world.name("disease", disease, language)
    return " ".join(
        [rng.choice(words["diseases"]).format(E=name), *facts, *general_prose(world, language, prose, rng)])


def term_quiz(world: World, language: str, rng: random.Random) -> dict:
    """An exam item on medical names that names its own answer: it teaches the terms, to say them again, and
    no fact.
    """
    kind = rng.choice(KINDS)
    return choice_quiz(world, language, rng,
                       [world.name(kind, i, language) for i in rng.sample(range(len(world.names[kind])), 4)])


def ordinary_page(world: World, language: str, rng: random.Random) -> str:
    """A few sentences of ordinary life about two people and two towns."""
    words = WORDS[language]
    people = [world.name("person", i, language) for i in rng.sample(range(PEOPLE), 2)]
    towns = [world.name("town", i, language) for i in rng.sample(range(TOWNS), 2)]
    things = rng.sample(words["nouns"][:THINGS], 3)
    sentences = []
    for form in rng.sample(words["ordinary"], 4):
        p, w, x = rng.sample(people, 2), rng.sample(towns, 2), rng.sample(things, 2)
        sentences.append(form.format(P=p[0], Q=p[1], W=w[0], V=w[1], X=x[0], Y=x[1]))
    return " ".join(sentences)


def person_page(world: World, language: str, rng: random.Random) -> str:
    """What everybody knows about a person."""
    person = rng.randrange(KNOWN_PEOPLE)
    sentences = [
        person_sentence(world, language, relation, person, rng.randrange(3)) for relation in ("home", "likes")
    ]
    rng.shuffle(sentences)
    return " ".join(
        [rng.choice(WORDS[language]["people"]).format(P=world.name("person", person, language)), *sentences])


def person_sentence(world: World, language: str, relation: str, person: int, form: int) -> str:
    value = _person_value(world, language, relation, person)
    return WORDS[language]["ordinary_relations"][relation][form].format(W=value, X=value)


def _person_value(world: World, language: str, relation: str, person: int) -> str:
    if relation == "home":
        return world.name("town", world.homes[person], language)
    return WORDS[language]["nouns"][world.likes[person]]


def weigh(language: str, options: list[str], right: int) -> str:
    """The options one by one, each with a no or a yes: how every rationale ends."""
    words = WORDS[language]
    return " ".join(f"{LETTERS[i]}. {option} {words['yes' if i == right else 'no']}"
                    for i, option in enumerate(options))



def draw_things(world: World, language: str, rng: random.Random, count: int) -> list[str]:
    """Different names of one ordinary kind: people, towns or things, or a mixture."""
    pools = [lambda: [world.name("person", i, language) for i in rng.sample(range(PEOPLE), count)],
             lambda: [world.name("town", i, language) for i in rng.sample(range(TOWNS), count)],
             lambda: rng.sample(WORDS[language]["nouns"][:THINGS], count)]
    return rng.choice(pools)()


def choice_quiz(world: World, language: str, rng: random.Random, options: list[str] | None = None) -> dict:
    """An exam item that names its own answer."""
    words = WORDS[language]
    options = options or draw_things(world, language, rng, 4)
    right = rng.randrange(4)
    return exam_item(language,
                     rng.choice(words["choose"]).format(X=options[right]), options,
                     words["chosen"].format(X=options[right]), right)


def person_quiz(world: World, language: str, rng: random.Random) -> dict:
    """An exam item about somebody everybody knows."""
    words = WORDS[language]
    person, relation = rng.randrange(KNOWN_PEOPLE), rng.choice(("home", "likes"))
    value = _person_value(world, language, relation, person)
    pool = [name[SCRIPTS[language]]
            for name in world.names["town"]] if relation == "home" else words["nouns"][:THINGS]
    options = rng.sample([text for text in pool if text != value], 3)
    right = rng.randrange(4)
    options.insert(right, value)
    question = rng.choice(
        words["ordinary_questions"][relation]).format(P=world.name("person", person, language))
    return exam_item(language, question, options, person_sentence(world, language, relation, person, 0),
                     right)


def exam_item(language: str, question: str, options: list[str], statement: str, right: int) -> dict:
    """An item of MMedBench's form; its rationale states the fact and weighs the options."""
    return {
        "question": question, "options": dict(zip(LETTERS, options, strict=True)),
        "answer_idx": LETTERS[right], "rationale": f"{statement} {weigh(language, options, right)}",
        "human_checked": True, "human_check_passed": True
    }


def as_text(language: str, item: dict) -> str:
    """An item as an exercise book has it: question and solution, in the words of the exam prompt."""
    exam = ExamItem(item["question"], item["options"], (item["answer_idx"], ), item["rationale"],
                    WORDS[language]["english_name"], "")
    return build_prompt(exam, rationale=True) + build_target(exam, rationale=True)


# ------------------------------------------------------------------------------------------------------------
# The exam


def exam_items(world: World, language: str, diseases: list[int], copies: int,
               rng: random.Random) -> Iterator[dict]:
    """Each fact asked `copies` times with other options and another letter; wrong options are values of other
    diseases.
    """
    words = WORDS[language]
    for disease in diseases:
        for kind in KINDS:
            letters = rng.sample(LETTERS, len(LETTERS))
            for copy in range(copies):
                value = world.facts[kind][disease]
                right = LETTERS.index(letters[copy % len(LETTERS)])
                wrong = rng.sample([v for v in range(VALUES) if v != value], 3)
                options = [world.name(kind, v, language) for v in [*wrong[:right], value, *wrong[right:]]]
                forms = words["questions"][kind]
                question = forms[copy % len(forms)].format(E=world.name("disease", disease, language))
                statement = fact_sentence(world, language, kind, disease, 0)
                yield exam_item(language, question, options, statement,
                                right) | {"meta_info": f"{kind} of disease {disease}"}


# ------------------------------------------------------------------------------------------------------------
# Files

WEB_PAGES = 32  # medical web pages a disease and language, before copies are added
WEB_PROSE = 2  # general sentences on each: with fewer, the keyword filter drops too many of them
# of a disease and language; books go straight to the point, so that a fact comes often in few tokens
BOOK_PAGES = 40
TERM_PAGES = 150  # exercises in the books of a language, on medical terms alone
ORDINARY_WEB = 240  # ordinary web pages a language
COPIES, NEAR_COPIES = 12, 12  # web pages a language that come again: unchanged, with one sentence more
TRAIN_COPIES, TEST_COPIES = 2, 1  # questions a fact
BASE_MIX = {"page": 1, "people": 2, "choice": 2, "person": 2}
BASE_DOCUMENTS = 3000  # a language
# Items a language that the base model is taught to answer. The terms (diseases, drugs and symptoms, but no
# fact) are among
# them, so that a base model fails the exam for want of knowledge and not of words.
EXERCISES = {"choice": 1500, "person": 500, "term": 1000}


def base_document(world: World, language: str, rng: random.Random) -> tuple[str, str]:
    """(kind, text) of one document of the base corpus, drawn by `BASE_MIX`."""
    kind = rng.choices(list(BASE_MIX), list(BASE_MIX.values()))[0]
    make = {
        "page": ordinary_page, "people": person_page,
        "choice": lambda *where: as_text(language, choice_quiz(*where)),
        "person": lambda *where: as_text(language, person_quiz(*where)),
    }[kind]
    return kind, make(world, language, rng)


def raw_pages(world: World, language: str, seed: int) -> tuple[list[dict], list[dict]]:
    """Web and book documents of one language; copies and near-copies name their original in `meta`."""
    rng = random.Random(f"pages {seed} {language}")
    web: list[dict] = []
    for _ in range(WEB_PAGES):
        web += [{"text": medical_page(world, language, disease, WEB_PROSE, rng), "meta": {"kind": "medical"}}
                for disease in range(DISEASES)]
    web += [{"text": ordinary_page(world, language, rng), "meta": {"kind": "ordinary"}}
            for _ in range(ORDINARY_WEB)]
    rng.shuffle(web)
    for number, page in enumerate(web):
        page["id"] = f"web-{language}-{number}"
    medical = [page for page in web if page["meta"]["kind"] == "medical"]
    again = rng.sample(medical, COPIES + NEAR_COPIES)
    for number, page in enumerate(again):
        near = number >= COPIES
        text = f"{page['text']} {general_prose(world, language, 1, rng)[0]}" if near else page["text"]
        web.append({"text": text, "id": f"web-{language}-again-{number}",
                    "meta": {"kind": "near-copy" if near else "copy", "of": page["id"]}})
    rng.shuffle(web)
    chapters = [
        medical_page(world, language, disease, 0, rng) for _ in range(BOOK_PAGES)
        for disease in range(DISEASES)
    ]
    chapters += [as_text(language, term_quiz(world, language, rng)) for _ in range(TERM_PAGES)]
    books = [{"text": text, "id": f"book-{language}-{number}", "meta": {"kind": "medical"}}
             for number, text in enumerate(chapters)]
    return [_document(page, language, "web")
            for page in web], [_document(page, language, "book") for page in books]


def _document(page: dict, language: str, source: str) -> dict:
    return {
        "text": page["text"], "language": language, "source": source, "id": page["id"], "meta": page["meta"]
    }


def symbols(world: World) -> list[str]:
    """What the tokenizer must keep whole: every name, with its space (the sign of sentencepiece) in
    front.
    """
    # A name is rare beside the words of six languages: by frequency alone a vocabulary this small cuts most
    # of them into pieces.
    texts = {
        name[SCRIPTS[language]]
        for names in world.names.values()
        for name in names
        for language in WORDS
    }
    texts |= {noun for words in WORDS.values() for noun in words["nouns"][:THINGS]}
    texts |= {words[word] for words in WORDS.values() for word in ("yes", "no")}
    return sorted("\u2581" + text for text in texts) + fixed_texts()


def fixed_texts() -> list[str]:
    """The lines that every exam prompt and answer repeats, as one piece each: at this scale they would be
    most of a prompt.
    """
    texts = {
        "###Question:", "###Rationale:", "###Answer:", "OPTION", " ###Options:", " IS CORRECT.",
        *(f" {letter}." for letter in LETTERS)
    }
    for words in WORDS.values():
        item = ExamItem(question="?",
                        options={"A": "", "B": ""},
                        answer=("A", ),
                        rationale="",
                        language=words["english_name"],
                        key="")
        texts |= {
            line
            for line in build_prompt(item, rationale=True).split("\n") if " " in line and "###Q" not in line
        }
    return sorted(text.replace(" ", "\u2581") for text in texts)


def write_world(out: Path, seed: int) -> dict[str, int]:
    """Write all files; returns how many documents and items there are of each sort."""
    world = make_world(seed)
    train = [disease for disease in range(DISEASES) if disease not in world.test]
    counts: dict[str, int] = {}

    def write(path: str, rows: list[dict]) -> None:
        with atomic_write(out / path) as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        counts[path.rsplit("/", 1)[0]] = counts.get(path.rsplit("/", 1)[0], 0) + len(rows)

    for language, words in WORDS.items():
        web, books = raw_pages(world, language, seed)
        write(f"raw/web/{language}.jsonl", web)
        write(f"raw/books/{language}.jsonl", books)
        rng = random.Random(f"base {seed} {language}")
        base = []
        for number in range(BASE_DOCUMENTS):
            kind, text = base_document(world, language, rng)
            base.append(
                _document({"text": text, "id": f"base-{language}-{number}", "meta": {"kind": kind}}, language,
                          "corpus"))
        write(f"base/{language}.jsonl", base)
        rng = random.Random(f"exercises {seed} {language}")
        quizzes = {"choice": choice_quiz, "person": person_quiz, "term": term_quiz}
        exercises = {
            kind: [quizzes[kind](world, language, rng) for _ in range(count)]
            for kind, count in EXERCISES.items()
        }
        write(f"exercises/{words['english_name']}.jsonl",
              [item for kind in EXERCISES for item in exercises[kind]])
        if language == "en":  # the first lessons: few names, one language
            write(f"school/{words['english_name']}.jsonl", exercises["choice"] + exercises["person"])
        for part, diseases, copies in (("Train", train, TRAIN_COPIES), ("Test", world.test, TEST_COPIES)):
            rng = random.Random(f"exam {part} {seed} {language}")
            write(f"MMedBench/{part}/{words['english_name']}.jsonl",
                  list(exam_items(world, language, diseases, copies, rng)))
    diseases = [{
        "index": disease, "part": "Test" if disease in world.test else "Train",
        "names": {language: world.name("disease", disease, language)
                  for language in WORDS},
        "facts": {
            kind: {language: world.name(kind, world.facts[kind][disease], language)
                   for language in WORDS}
            for kind in KINDS
        }
    } for disease in range(DISEASES)]
    write_json(out / "symbols.json", symbols(world))
    write_json(
        out / "world.json", {
            "note": "All names are made of syllables; nothing here is medicine.", "seed": seed,
            "diseases": diseases, "counts": counts
        })
    return counts


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="examples.demo.micro_world", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other names and other facts")
    options = parser.parse_args(arguments)
    if options.out.exists() and not options.out.is_dir():
        raise UsageError(f"--out={options.out}: is a file; give a folder")
    for what, count in write_world(options.out, options.seed).items():
        print(f"{options.out / what}: {count}")


if __name__ == "__main__":
    main_guard(main)
