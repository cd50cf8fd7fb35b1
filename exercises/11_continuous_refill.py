"""Exercise 11: continuous batching. (Tour, section 11; Yu et al. 2022, "Orca".)

`step(sequences)` is the model: it takes at most `max_batch_size` sequences (lists of ids) and returns the
next id of each. A call costs the same however many sequences it gets, so the batch should stay full. A
sequence is done when `end` comes (which is not part of its answer) or when it has `limit` new ids. The next
prompt, in the order of `prompts`, takes its place before the next call; waiting until all sequences of a
batch are done costs calls, and the check counts them.

    batch of 2, answers of 1, 3 and 2 ids (the end counted):    call 1: prompts 0 1    call 2: prompts 2 1
    call 3: prompts 2 1
"""
from collections.abc import Callable


def decode(step: Callable[[list[list[int]]], list[int]], prompts: list[list[int]], max_batch_size: int,
           end: int, limit: int) -> list[list[int]]:
    """The new ids of each prompt, in the order of `prompts`."""
    ...
