"""Exercise 2: the two numbers of the keyword filter. (Tour, section 2; the paper's section on filtering.)

A term is a whole word ("fever"), or a stem with a bar behind it ("infectio|"), which stands for every word
that begins with it. A word is a run of letters and digits; case does not matter. A term counts where a whole
word is it, or begins with its stem.

    MKC   how many different terms stand in the text
    DENS  letters of the text that lie in terms / letters and digits of the text

Of a word that begins with a stem only the stem's own letters lie in the term.

    medical_numbers("Infections, and fever!", ["infectio|", "fever", "cough"])
        MKC  = 2
        DENS = (8 + 5) / (10 + 3 + 5) = 13 / 18
"""


def medical_numbers(text: str, terms: list[str]) -> tuple[int, float]:
    """(MKC, DENS) of `text`; DENS of a text without letters is 0. No term is the beginning of another."""
    ...
