"""Exercise 7: exam items in one row, with the label mask. (Tour, section 10.)

An example is (ids, prompt_length): the ids of prompt and target one after the other, and how many of them are
prompt. Lay several examples into a row of T places, one after the other. An example of n ids takes n - 1
places: what goes in is all but the last id, and the label of a place is the next id, if that is part of the
target; else it is -100, "no loss".

    two examples    <s> Q Q R R </s>   3 of prompt            <s> Q R </s>   2 of prompt
    input_ids       <s> Q   Q  R  R             <s> Q  R      0     0          free places hold 0
    labels          -100 -100  R  R  </s>       -100 R </s>  -100  -100
    document_ids    0   0   0  0  0             1   1  1      -1    -1          whose place it is
    positions       0   1   2  3  4             0   1  2      0     0           begins anew with every example
"""


def pack(examples: list[tuple[list[int], int]], T: int) -> dict[str, list[int]]:
    """{"input_ids": ..., "labels": ..., "document_ids": ..., "positions": ...}, each a list of T numbers; the
    examples fit into T."""
    ...
