"""Exercise 1: cut a word into pieces as a BPE tokenizer does. (Tour, section 4.)

A BPE vocabulary is a list of pieces in the order in which training found them. To encode a word, begin with
its characters and join two neighbours whenever their union is a piece. If several pairs could be joined, join
the one whose union was found first (the lowest rank; if that stands at several places, the leftmost), and
look again. Stop when no pair can be joined.

    rank = {"lo": 0, "ow": 1, "low": 2}
    encode("slow", rank)    s l o w  ->  s lo w  ->  s low          "lo" goes first, although "ow" could have
                            been joined as well
"""


def encode(word: str, rank: dict[str, int]) -> list[str]:
    """The pieces of `word`. `rank`: piece -> its place in the order of training; characters need no rank."""
    ...
