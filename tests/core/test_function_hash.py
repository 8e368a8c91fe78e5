"""Functions that do something else have another hash, whatever they are called."""

from functools import partial

from positional_heads.core.function_hash import function_hash


def makes(number, text="a"):
    def score(model, *, scale=1):
        return [number * scale] * len(text)

    return score


class Scorer:
    def __init__(self, number):
        self.number = number

    def __call__(self, model):
        return [self.number]


def test_a_hash_is_that_of_what_a_function_does():
    others = [
        makes(1),
        makes(2),
        makes(1, "bb"),
        partial(makes(1), scale=2),
        lambda model: [0.1],
        lambda model: [0.9],
        Scorer(1),
    ]
    assert len({*map(function_hash, others)}) == len(others)
    assert function_hash(makes(1)) == function_hash(makes(1))
    assert function_hash(partial(makes(1), scale=2)) == function_hash(partial(makes(1), scale=2))
    assert function_hash(Scorer(1)) == function_hash(Scorer(2))  # objects are known by their class
    assert function_hash(Scorer(1).__call__) == function_hash(Scorer.__call__)


def test_a_function_that_encloses_itself_has_a_hash():
    def countdown(model, left=3):
        return [0.0] if not left else countdown(model, left - 1)

    assert len(function_hash(countdown)) == 64
