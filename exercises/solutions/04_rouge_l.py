def rouge_l(candidate: list[str], reference: list[str]) -> tuple[float, float, float]:
    above = [0] * (len(reference) + 1)
    for a in candidate:
        row = [0]
        for j, b in enumerate(reference):
            row.append(above[j] + 1 if a == b else max(above[j + 1], row[j]))
        above = row
    lcs = above[-1]
    if not lcs:
        return 0.0, 0.0, 0.0
    precision, recall = lcs / len(candidate), lcs / len(reference)
    return precision, recall, 2 * precision * recall / (precision + recall)
