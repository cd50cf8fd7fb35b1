"""Exercise 4: ROUGE-L of one sentence. (Tour, section 12; Lin 2004.)

A common subsequence of two token lists is what you get by crossing out tokens of each until both are the
same. Its greatest length, the LCS, comes from a table: t[i][j] is that of the first i and the first j tokens,

    t[i][j] = t[i-1][j-1] + 1                    if the two tokens there are equal
            = max(t[i-1][j], t[i][j-1])          else

    precision = LCS / candidate length      recall = LCS / reference length      f1 = 2 x precision x recall /
                                            (precision + recall)

All three are 0 if nothing is shared.

    rouge_l("a b c d".split(), "b a c d x".split())     LCS 3 (a c d)  ->  (0.75, 0.6, 0.666667)
"""


def rouge_l(candidate: list[str], reference: list[str]) -> tuple[float, float, float]:
    """(precision, recall, f1)"""
    ...
