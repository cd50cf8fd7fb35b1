"""How the time of some work grows with its size, beside other work on the same processor."""
from collections.abc import Callable


def grows_at_most(seconds: Callable[[int], float], small: int, large: int, factor: float,
                  slack: float = 0.0) -> bool:
    """Whether `large` takes at most `factor` times as long as `small`: the least times of two to eight turns,
    since others only slow a turn down."""
    least = [float("inf")] * 2
    for turn in range(8):
        least = [min(best, seconds(size)) for best, size in zip(least, (small, large))]
        if turn and least[1] <= factor * least[0] + slack:
            return True
    print(f"{least[0]:.4f} s of {small:,}, {least[1]:.4f} s of {large:,}")
    return False
