"""What `python -m mmed.languages new` writes: TEMPLATE, with {{gaps}} for what a language's code tells."""
from __future__ import annotations

TEMPLATE = '''"""{{name}}."""
from mmed.languages import AnswerWords, Language, {{imports}}, words

LANGUAGE = Language(
    code="{{code}}", name="{{name}}", native_name="{{own}}", spaced={{spaced}},{{right}}{{prefixes}}
    # TODO 200 terms in dictionary form, lower case, commas between: signs and people, diseases, organs,
    # examination and treatment, pharmacy, medical biology.
    # {{bars}}
    # "a/b": two spellings of one term. No words of everyday life or of science in general: they let ordinary
    # pages in.
    medical_words=words("""
        TODO
    """),
    # TODO choose on texts: python -m data_prep.filters.language_check {{code}} --text labelled.jsonl
    min_hits=4, min_density=0.04,
    # of the published rule; none was published for {{name}}: those of French and Spanish
    official_min_hits=4, official_min_density=0.04,
    ocr_code="{{ocr}}",  # Tesseract's name of the language
    medical_sentence="TODO a patient, a complaint, an examination, a treatment{{end}}",
    ordinary_sentence="TODO a sentence without any medical word, such as on a train to the sea{{end}}",
    disclaimer="TODO This is a research model. What it says is no medical advice; ask a doctor{{end}}",
    # How models state an answer: regular expressions with "|" between alternatives, in lower case.
    # AnswerWords in mmed/languages/__init__.py says what each field means, and mmed/languages/en.py shows
    # them filled in. Leave out what the language does not have.
    answers=AnswerWords(
        cue="TODO answer|correct option", decide="TODO i choose|therefore", weak="TODO i think|probably",
        negation="TODO not|instead of", negation_before="TODO not", either="TODO either", or_="TODO or",
        and_="TODO and", but="TODO but|rather",
        copula="TODO is|are", link="TODO was", filler="TODO the|option|letter|correct",
        goes_on="TODO because|and|is", because="TODO because",
        is_answer="TODO is the (?:correct|best) (?:answer|option)",
        right_link="TODO is ", right="TODO correct|true",
        wrong_link="TODO (?:is)?", wrong="TODO not|wrong|false",
        name_before="TODO vitamin|hepatitis|type", named="TODO cells|virus",
        item_prefix="TODO option", line_prefix="TODO option|both",
        bare_tail="TODO and not [A-Z]", question="TODO Question",
        avoid="TODO contraindicated|avoid|not",{{letters}}
        # Sentences for the tests: {} is the letter. They must be read as its answer, or must not.
        stated=("TODO The correct answer is {}{{end}}", "TODO I choose {}{{end}}",
                "TODO {} is the best option{{end}}"),
        denied=("TODO {} is wrong{{end}}", "TODO It is not {}{{end}}"),
    ),
    phone_words="TODO telephone|phone",  # before a telephone number
    # or functions in this file
    split_words={{split}}, official_words={{official}},{{package}}
)
'''
