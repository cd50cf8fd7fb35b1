import math
from collections import Counter


def bleu4(candidate: list[str], reference: list[str]) -> float:
    logs = 0.0
    for n in range(1, 5):
        ours, theirs = (Counter(zip(*(tokens[i:] for i in range(n)))) for tokens in (candidate, reference))
        shared = (ours & theirs).total()
        if n == 1 and not shared:
            return 0.0
        logs += math.log((shared or 0.1) / max(1, len(candidate) - n + 1))
    penalty = 1.0 if len(candidate) > len(reference) else math.exp(1 - len(reference) / len(candidate))
    return penalty * math.exp(logs / 4)
