"""What `python -m mmed.languages new` writes: TEMPLATE, with {{gaps}} for what a language's code tells."""
TEMPLATE = '''"""{{name}}."""
from mmed.languages import AnswerWords, Language, {{imports}}, words

LANGUAGE = Language(
    code="{{code}}", name="{{name}}", native_name="{{own}}", spaced={{spaced}},{{right}}
    # TODO 200 terms in dictionary form, lower case, commas between: signs and people, diseases, organs,
    # examination and treatment, pharmacy, medical biology. {{bars}}
    # "a/b": two spellings of one term. No words of everyday life or of science in general: they let ordinary
    # pages in.
    medical_words=words("""
        TODO
    """),
    # TODO choose on texts: python -m data_prep.filters.language_check {{code}} --text labelled.jsonl
    min_hits=4, min_density=0.04,
    official_min_hits=4, official_min_density=0.04,  # the published rule; these are for French and Spanish
    ocr_code="{{ocr}}",  # Tesseract's name of the language
    medical_sentence="TODO a patient, a complaint, an examination, a treatment{{end}}",
    ordinary_sentence="TODO a sentence without any medical word, such as on a train to the sea{{end}}",
    disclaimer="TODO This is a research model. What it says is no medical advice; ask a doctor{{end}}",
    # Words by which models state an answer, in lower case, commas between. "correct|e": any ending. Phrases
    # of several words are allowed. mmed/languages/en.py shows the lists filled in.
    answers=AnswerWords(
        answer="TODO answer, option, diagnosis, treatment|, cause",  # what the letter answers
        is_="TODO is, are, would be, seems",
        choose="TODO choose, think, therefore, actually, wait",  # come before the letter, without "is"
        correct="TODO correct, right, best, most likely",
        wrong="TODO wrong, false, ruled out",
        not_="TODO not, neither, rather than",  # exclude the letter after them
        because="TODO because, since",  # may follow the letter
        and_or="TODO and, as well as / or",  # join letters; after the slash those that leave it open
        question="TODO Question",  # the heading of a question{{letters}}
        # Sentences for the tests: {} is the letter. They must be read as its answer, or must not.
        stated=("TODO The correct answer is {}{{end}}", "TODO I choose {}{{end}}",
                "TODO {} is the best option{{end}}"),
        denied=("TODO {} is wrong{{end}}", "TODO It is not {}{{end}}"),
    ),
    phone_words="TODO telephone|phone",  # before a telephone number, bars between
    split_words={{split}}, official_words={{official}},  # or functions in this file
)
'''
