"""Numbers in words, for texts that are printed without torch."""

from collections.abc import Sequence


def number_ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, abbreviated: 0-3, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
