"""What a mutant is."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A mistake, and what should see it: the beginnings of test files' names, and behind -k which of their tests."""

    file: str
    right: str
    wrong: str
    tests: str
