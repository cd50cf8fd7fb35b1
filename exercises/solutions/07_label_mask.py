def pack(examples: list[tuple[list[int], int]], T: int) -> dict[str, list[int]]:
    row: dict[str, list[int]] = {"input_ids": [], "labels": [], "document_ids": [], "positions": []}
    for number, (ids, prompt_length) in enumerate(examples):
        n = len(ids) - 1
        row["input_ids"] += ids[:-1]
        row["labels"] += [ids[i + 1] if i + 1 >= prompt_length else -100 for i in range(n)]
        row["document_ids"] += [number] * n
        row["positions"] += range(n)
    free = T - len(row["input_ids"])
    for name, filler in (("input_ids", 0), ("labels", -100), ("document_ids", -1), ("positions", 0)):
        row[name] += [filler] * free
    return row
