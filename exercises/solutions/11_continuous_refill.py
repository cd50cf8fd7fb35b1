from collections.abc import Callable


def decode(step: Callable[[list[list[int]]], list[int]], prompts: list[list[int]], max_batch_size: int,
           end: int, limit: int) -> list[list[int]]:
    results: list[list[int]] = [[] for _ in prompts]
    waiting, running = list(range(len(prompts))), []
    while waiting or running:
        while waiting and len(running) < max_batch_size:
            running.append(waiting.pop(0))
        tokens = step([prompts[i] + results[i] for i in running])
        still = []
        for i, token in zip(running, tokens):
            if token != end:
                results[i].append(token)
                if len(results[i]) < limit:
                    still.append(i)
        running = still
    return results
