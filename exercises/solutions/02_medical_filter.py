import re


def medical_numbers(text: str, terms: list[str]) -> tuple[int, float]:
    words = re.findall(r"[^\W_]+", text.lower())
    found, covered = set(), 0
    for word in words:
        for term in terms:
            stem = term.removesuffix("|")
            if word == stem or (term.endswith("|") and word.startswith(stem)):
                found.add(term)
                covered += len(stem)
    letters = sum(map(len, words))
    return len(found), covered / letters if letters else 0.0
