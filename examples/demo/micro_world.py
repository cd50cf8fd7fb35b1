"""The demo's world in six languages: fictional diseases, drugs, organs and symptoms, and ordinary life.

In: a seed. Out, below `--out`, the same bytes for the same seed:

    raw/web/CODE.jsonl               web pages as a crawl finds them: ordinary and medical, with copies
    raw/books/CODE.jsonl             pages of medical books
    base/CODE.jsonl                  ordinary text with exercises, for the base model; nothing medical
    exercises/NAME.jsonl             exam items on ordinary things and on terms, taught to the base model
    school/English.jsonl             those on ordinary things in English, for the first lessons
    MMedBench/{Train,Test}/NAME.jsonl   exam items; a disease of Test is in no item of Train
    world.json                       every disease with its facts and its half, to check that nothing leaks

None of it exists, so nothing can be taken for medical advice and no model can know it beforehand. A fact (the
drug of a disease) is stated in all six languages, in several paraphrases; English, French and Spanish share
one spelling of names. docs/demo.md says what lets so small a model sit the exam: names between spaces, which
become single pieces; rationales that begin with a sentence of the corpus and then go through the options one
by one, which is practised on ordinary things in the base text.

    python -m examples.demo.micro_world --out demo/world --seed 0
"""
from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from examples.demo.micro_world_words import ENDINGS, SCRIPTS, SYLLABLES, WORDS
from mmed.languages import get_language
from mmed.prompts import ExamItem, build_prompt, build_target
from mmed.utils.errors import Parser, main_guard
from mmed.utils.files import atomic_write, write_json

DISEASES = 32  # half of them for Test
ORGANS = 6
VALUES = 12  # drugs and symptoms each; shared by both halves, so that an option list gives nothing away
# Few, because how soon a model learns to compare names depends on how many there are: with 200 different ones
# in all scripts after some 700 steps, with 1,000 not after 1,600. Ordinary things are as few as people.
PEOPLE, TOWNS = 16, 12
THINGS = len(WORDS["en"]["nouns"])
KNOWN_PEOPLE = 12  # of whom the base text says where they live and what they like
LETTERS = "ABCD"
KINDS = ("drug", "symptom")

Name = tuple[str, str, str, str]  # one spelling a script


@dataclass
class World:
    """All names and facts; a fact is an index into a list of names, and so the same in every language."""

    names: dict[str, list[Name]]  # "disease", "drug", ... -> spellings
    facts: dict[str, list[int]]  # "drug" -> for each disease the index of its drug
    homes: list[int]  # for each known person the town
    likes: list[int]  # for each known person the noun
    test: list[int]  # diseases of the Test half

    def name(self, kind: str, index: int, language: str) -> str:
        return self.names[kind][index][SCRIPTS[language]]


def make_world(seed: int) -> World:
    """Draw names without repetition, and facts so that each value serves as many diseases of each half."""
    rng = random.Random(f"world {seed}")
    stems = list(itertools.product(range(len(SYLLABLES)), repeat=2))
    rng.shuffle(stems)
    names: dict[str, list[Name]] = {}
    sizes = {"disease": DISEASES, "drug": VALUES, "symptom": VALUES, "organ": ORGANS, "person": PEOPLE,
             "town": TOWNS}
    for kind, count in sizes.items():
        names[kind] = []
        while len(names[kind]) < count:
            first, second = (SYLLABLES[place] for place in stems.pop())
            if first != second:
                names[kind].append(tuple((one + two).capitalize() + ending
                                         for one, two, ending in zip(first, second, ENDINGS[kind])))
    order = list(range(DISEASES))
    rng.shuffle(order)
    half = DISEASES // 2
    facts = {}
    for kind in KINDS:
        values = dict(zip(order, [*_even(rng, VALUES, half), *_even(rng, VALUES, half)], strict=True))
        facts[kind] = [values[disease] for disease in range(DISEASES)]
    return World(names, facts, _even(rng, TOWNS, KNOWN_PEOPLE), _even(rng, THINGS, KNOWN_PEOPLE),
                 sorted(order[:half]))


def _even(rng: random.Random, values: int, count: int) -> list[int]:
    """`count` draws of range(values) in which no value comes twice more often than another."""
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += rng.sample(range(values), min(values, count - len(drawn)))
    return drawn


def fact_sentence(world: World, language: str, kind: str, disease: int, form: int) -> str:
    """One fact in one of its paraphrases."""
    return WORDS[language]["relations"][kind][form].format(
        V=world.name(kind, world.facts[kind][disease], language))


def general_prose(world: World, language: str, count: int, rng: random.Random) -> list[str]:
    """Sentences of medical prose that tell no fact."""
    organ = world.name("organ", rng.randrange(ORGANS), language)
    return [sentence.format(O=organ) for sentence in rng.sample(WORDS[language]["medical"], count)]


def medical_page(world: World, language: str, disease: int, prose: int, rng: random.Random) -> str:
    """A short page about one disease: its name, each fact in one of its paraphrases, `prose` other sentences.

    Name and facts come once: a second mention could be copied from the first, and what can be copied is not
    learnt by heart. An exam has the same form, the name in the question and the fact in the rationale.
    """
    words = WORDS[language]
    facts = [fact_sentence(world, language, kind, disease, rng.randrange(len(words["relations"][kind])))
             for kind in rng.sample(KINDS, len(KINDS))]
    name = world.name("disease", disease, language)
    opening = rng.choice(words["diseases"]).format(E=name)
    return " ".join([opening, *facts, *general_prose(world, language, prose, rng)])


def term_quiz(world: World, language: str, rng: random.Random) -> dict:
    """An exam item on medical names that names its own answer: it teaches the terms and no fact."""
    kind = rng.choice(KINDS)
    terms = [world.name(kind, i, language) for i in rng.sample(range(VALUES), 4)]
    return choice_quiz(world, language, rng, terms)


def ordinary_page(world: World, language: str, rng: random.Random) -> str:
    """A few sentences of ordinary life about two people and two towns."""
    words = WORDS[language]
    people = [world.name("person", i, language) for i in rng.sample(range(PEOPLE), 2)]
    towns = [world.name("town", i, language) for i in rng.sample(range(TOWNS), 2)]
    things = rng.sample(words["nouns"], 3)
    sentences = []
    for form in rng.sample(words["ordinary"], 4):
        (p, q), (w, v), (x, y) = (rng.sample(names, 2) for names in (people, towns, things))
        sentences.append(form.format(P=p, Q=q, W=w, V=v, X=x, Y=y))
    return " ".join(sentences)


def person_page(world: World, language: str, rng: random.Random) -> str:
    """What everybody knows about a person."""
    person = rng.randrange(KNOWN_PEOPLE)
    sentences = [person_sentence(world, language, relation, person, rng.randrange(3))
                 for relation in ("home", "likes")]
    rng.shuffle(sentences)
    opening = rng.choice(WORDS[language]["people"]).format(P=world.name("person", person, language))
    return " ".join([opening, *sentences])


def person_sentence(world: World, language: str, relation: str, person: int, form: int) -> str:
    value = _person_value(world, language, relation, person)
    return WORDS[language]["ordinary_relations"][relation][form].format(W=value, X=value)


def _person_value(world: World, language: str, relation: str, person: int) -> str:
    if relation == "home":
        return world.name("town", world.homes[person], language)
    return WORDS[language]["nouns"][world.likes[person]]


def draw_things(world: World, language: str, rng: random.Random) -> list[str]:
    """Four different names of one ordinary kind: people, towns or things."""
    kind = rng.choice(("person", "town", "thing"))
    if kind == "thing":
        return rng.sample(WORDS[language]["nouns"], 4)
    return [world.name(kind, i, language) for i in rng.sample(range(len(world.names[kind])), 4)]


def choice_quiz(world: World, language: str, rng: random.Random, options: list[str] | None = None) -> dict:
    """An exam item that names its own answer."""
    words = WORDS[language]
    options = options or draw_things(world, language, rng)
    right = rng.randrange(4)
    question = rng.choice(words["choose"]).format(X=options[right])
    return exam_item(language, question, options, words["chosen"].format(X=options[right]), right)


def person_quiz(world: World, language: str, rng: random.Random) -> dict:
    """An exam item about somebody everybody knows."""
    person, relation = rng.randrange(KNOWN_PEOPLE), rng.choice(("home", "likes"))
    value = _person_value(world, language, relation, person)
    towns = [world.name("town", i, language) for i in range(TOWNS)]
    pool = towns if relation == "home" else WORDS[language]["nouns"]
    options = rng.sample([text for text in pool if text != value], 3)
    right = rng.randrange(4)
    options.insert(right, value)
    form = rng.choice(WORDS[language]["ordinary_questions"][relation])
    return exam_item(language, form.format(P=world.name("person", person, language)), options,
                     person_sentence(world, language, relation, person, 0), right)


def exam_item(language: str, question: str, options: list[str], statement: str, right: int) -> dict:
    """An item of MMedBench's form; its rationale states the fact, then each option with a no or a yes."""
    verdicts = [WORDS[language]["yes" if place == right else "no"] for place in range(len(options))]
    weighed = [f"{letter}. {option} {verdict}" for letter, option, verdict in zip(LETTERS, options, verdicts)]
    return {"question": question, "options": dict(zip(LETTERS, options, strict=True)),
            "answer_idx": LETTERS[right], "rationale": " ".join([statement, *weighed]),
            "human_checked": True, "human_check_passed": True}


def as_text(language: str, item: dict) -> str:
    """An item as an exercise book has it: question and solution, in the words of the exam prompt."""
    exam = ExamItem(item["question"], item["options"], (item["answer_idx"],), item["rationale"],
                    get_language(language).name, "")
    return build_prompt(exam, rationale=True) + build_target(exam, rationale=True)


def exam_items(world: World, language: str, diseases: list[int], copies: int,
               rng: random.Random) -> Iterator[dict]:
    """Each fact asked `copies` times (at most twice) with other options, which are values of other diseases,
    and another letter."""
    for disease, kind in itertools.product(diseases, KINDS):
        letters, value = rng.sample(LETTERS, len(LETTERS)), world.facts[kind][disease]
        for letter, form in zip(letters[:copies], WORDS[language]["questions"][kind]):
            right = LETTERS.index(letter)
            wrong = rng.sample([v for v in range(VALUES) if v != value], 3)
            options = [world.name(kind, v, language) for v in [*wrong[:right], value, *wrong[right:]]]
            item = exam_item(language, form.format(E=world.name("disease", disease, language)), options,
                             fact_sentence(world, language, kind, disease, 0), right)
            yield item | {"meta_info": f"{kind} of disease {disease}"}


WEB_PAGES = 32  # medical web pages per disease and language, before copies are added
WEB_PROSE = 2  # general sentences on each: with fewer, the keyword filter drops too many of them
BOOK_PAGES = 40  # without prose, to repeat a fact often in few tokens
TERM_PAGES = 150  # exercises in the books of a language, on medical terms alone
ORDINARY_WEB = 240  # ordinary web pages a language
COPIES, NEAR_COPIES = 12, 12  # web pages per language that are copied: unchanged, with one sentence added
QUESTIONS = {"Train": 2, "Test": 1}  # a fact
BASE_MIX = {"page": 1, "people": 2, "choice": 2, "person": 2}
BASE_DOCUMENTS = 3000  # a language
# Items a language that the base model is taught to answer. The terms (diseases, drugs and symptoms, but no
# fact) are among them, so that a base model fails the exam for want of knowledge and not of words.
EXERCISES = {"choice": 1500, "person": 500, "term": 1000}
QUIZZES = {"choice": choice_quiz, "person": person_quiz, "term": term_quiz}


def base_document(world: World, language: str, rng: random.Random) -> dict:
    """One document of the base corpus, drawn by `BASE_MIX`."""
    kind = rng.choices(list(BASE_MIX), list(BASE_MIX.values()))[0]
    if kind in QUIZZES:
        text = as_text(language, QUIZZES[kind](world, language, rng))
    else:
        text = {"page": ordinary_page, "people": person_page}[kind](world, language, rng)
    return {"text": text, "meta": {"kind": kind}}


def web_pages(world: World, language: str, rng: random.Random) -> list[dict]:
    """Copies and near-copies name their original in `meta`."""
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
    for number, page in enumerate(rng.sample(medical, COPIES + NEAR_COPIES)):
        near = number >= COPIES
        text = f"{page['text']} {general_prose(world, language, 1, rng)[0]}" if near else page["text"]
        web.append({"text": text, "id": f"web-{language}-again-{number}",
                    "meta": {"kind": "near-copy" if near else "copy", "of": page["id"]}})
    rng.shuffle(web)
    return web


def book_pages(world: World, language: str, rng: random.Random) -> list[dict]:
    chapters = [medical_page(world, language, disease, 0, rng) for _ in range(BOOK_PAGES)
                for disease in range(DISEASES)]
    chapters += [as_text(language, term_quiz(world, language, rng)) for _ in range(TERM_PAGES)]
    return [{"text": text, "meta": {"kind": "medical"}} for text in chapters]


def symbols(world: World) -> list[str]:
    """What the tokenizer must keep whole; by frequency alone a vocabulary this small would cut most of it.

    Every name, with its space in front (sentencepiece's sign), and the lines that every exam prompt and
    answer repeats, which at this scale would be most of a prompt.
    """
    names = {name[script] for kind in world.names.values() for name in kind for script in range(4)}
    lines = {"###Question:", "###Rationale:", "###Answer:", "OPTION", " ###Options:", " IS CORRECT.",
             *(f" {letter}." for letter in LETTERS)}
    for language, words in WORDS.items():
        names |= {*words["nouns"], words["yes"], words["no"]}
        item = ExamItem("?", {"A": "", "B": ""}, ("A",), "", get_language(language).name, "")
        lines |= {line for line in build_prompt(item, rationale=True).split("\n")
                  if " " in line and "###Q" not in line}
    return sorted(f" {name}".replace(" ", "\u2581") for name in names) + sorted(
        line.replace(" ", "\u2581") for line in lines)


def write_world(out: Path, seed: int) -> dict[str, int]:
    """Write all files; return how many documents and items there are of each sort."""
    world = make_world(seed)
    halves = {"Train": [disease for disease in range(DISEASES) if disease not in world.test],
              "Test": world.test}
    counts: Counter[str] = Counter()

    def write(path: str, rows: list[dict]) -> None:
        with atomic_write(out / path) as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        counts[path.rsplit("/", 1)[0]] += len(rows)

    def write_documents(path: str, pages: list[dict], source: str, name: str) -> None:
        write(path, [{"text": page["text"], "language": language, "source": source,
                      "id": page.get("id", f"{name}-{language}-{number}"), "meta": page["meta"]}
                     for number, page in enumerate(pages)])

    for language in WORDS:
        rng, name = random.Random(f"pages {seed} {language}"), get_language(language).name
        write_documents(f"raw/web/{language}.jsonl", web_pages(world, language, rng), "web", "web")
        write_documents(f"raw/books/{language}.jsonl", book_pages(world, language, rng), "book", "book")
        rng = random.Random(f"base {seed} {language}")
        base = [base_document(world, language, rng) for _ in range(BASE_DOCUMENTS)]
        write_documents(f"base/{language}.jsonl", base, "corpus", "base")
        rng = random.Random(f"exercises {seed} {language}")
        exercises = {kind: [QUIZZES[kind](world, language, rng) for _ in range(count)]
                     for kind, count in EXERCISES.items()}
        write(f"exercises/{name}.jsonl", list(itertools.chain(*exercises.values())))
        if language == "en":  # the first lessons: few names, one language
            write(f"school/{name}.jsonl", exercises["choice"] + exercises["person"])
        for part, diseases in halves.items():
            rng = random.Random(f"exam {part} {seed} {language}")
            write(f"MMedBench/{part}/{name}.jsonl",
                  list(exam_items(world, language, diseases, QUESTIONS[part], rng)))
    diseases = [{
        "index": disease, "part": "Test" if disease in world.test else "Train",
        "names": {language: world.name("disease", disease, language) for language in WORDS},
        "facts": {kind: {language: world.name(kind, world.facts[kind][disease], language)
                         for language in WORDS} for kind in KINDS}} for disease in range(DISEASES)]
    write_json(out / "symbols.json", symbols(world))
    write_json(out / "world.json", {"note": "All names are made of syllables; nothing here is medicine.",
                                    "seed": seed, "diseases": diseases, "counts": counts})
    return counts


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="examples.demo.micro_world", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--seed", type=int, default=0, help="random seed; it decides all names and facts")
    options = parser.parse_args(arguments)
    for what, count in write_world(options.out, options.seed).items():
        print(f"{options.out / what}: {count}")


if __name__ == "__main__":
    main_guard(main)
