"""Exercise 3: BLEU-4 of one sentence, as the paper scores rationales. (Tour, section 12; Papineni et al.
2002.)

For n = 1 to 4 count the n-grams of the candidate that are in the reference too, each at most as often as it
occurs there, and divide by the number of n-grams of the candidate (or by 1, if it is too short to have any).
Where nothing is shared, count 0.1 instead of 0 (smoothing "method1"). Then

    BLEU-4 = penalty x exp(mean of the four logarithms)
    penalty = 1 if the candidate is longer than the reference, else exp(1 - reference length / candidate
    length)

If not even one word is shared the score is 0.

    bleu4("the cat sat".split(), "the cat sat down".split())
        shares 3/3, 2/2, 1/1, 0.1/1; penalty exp(1 - 4/3)          -> 0.402942
"""


def bleu4(candidate: list[str], reference: list[str]) -> float:
    ...
