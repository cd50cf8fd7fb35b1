import itertools


def encode(word: str, rank: dict[str, int]) -> list[str]:
    parts = list(word)
    while True:
        pairs = [(rank[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in rank]
        if not pairs:
            return parts
        _, i = min(pairs)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
