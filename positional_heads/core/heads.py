"""A head of a model: printed as `L3H7`, and read from every common notation."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.core.arguments import is_integer


class Head(NamedTuple):
    """One query head of a model, counted from zero; printed as `L3H7`."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    def __repr__(self) -> str:
        return str(self)

    @classmethod
    def parse(cls, text: str) -> "Head":
        """Read a head written as `L3H7`.

        Raises:
            ValueError: If the text has another form.
        """
        match = re.fullmatch(r"\s*[Ll](\d+)[Hh](\d+)\s*", text) if isinstance(text, str) else None
        if match is None:
            msg = f"{text!r} is not a head: write layer and head as in L3H7"
            raise ValueError(msg)
        return cls(int(match[1]), int(match[2]))


AnyHead = Head | tuple[int, int] | str
Heads = AnyHead | Sequence[AnyHead]
"""Notations for heads: "L3H7", (3, 7), Head(3, 7), or several of them."""


def as_heads(heads: Any, n_layers: int | None = None, n_heads: int | None = None) -> list[Head]:
    """Read one or several heads, each written as `"L3H7"`, `(3, 7)` or `Head(3, 7)`, in the order given.

    Args:
        heads: One head, or several in a list, an array, or any other iterable.
        n_layers: Layers of the model; not checked when None.
        n_heads: Heads per layer; not checked when None.

    Raises:
        TypeError: If this is neither a head nor a list of heads.
        ValueError: If a head has another notation, or does not exist in the model.
    """
    single = isinstance(heads, str) or _is_layer_and_head(heads)
    if not single and (not isinstance(heads, Iterable) or isinstance(heads, (dict, bytes))):
        msg = f"heads must be like 'L3H7' or (3, 7), or a list of such, got {heads!r}"
        raise TypeError(msg)
    parsed = [as_head(head) for head in ([heads] if single else heads)]
    for head in parsed:
        in_layers = n_layers is None or head.layer < n_layers
        if min(head) < 0 or not in_layers or (n_heads is not None and head.head >= n_heads):
            last = "" if n_layers is None or n_heads is None else f" to {n_layers - 1}, heads to {n_heads - 1}"
            msg = f"{head} does not exist: layers go from 0{last or ', heads too'}"
            raise ValueError(msg)
    return parsed


def _is_layer_and_head(head: Any) -> bool:
    return isinstance(head, tuple) and len(head) == 2 and all(map(is_integer, head))  # noqa: PLR2004


def as_head(head: Any) -> Head:
    """Read one head, written as `"L3H7"`, `(3, 7)` or `Head(3, 7)`.

    Raises:
        ValueError: If it has another notation.
    """
    if isinstance(head, str):
        return Head.parse(head)
    numbers = head.tolist() if hasattr(head, "tolist") else head  # rows of arrays and tensors
    numbers = tuple(numbers) if isinstance(numbers, list) else numbers
    if not _is_layer_and_head(numbers):
        msg = f'heads must be "L3H7", (3, 7) or Head(3, 7), one or several, and {head!r} is not a head'
        msg += "; layer and head are counted from zero"
        raise ValueError(msg)
    return Head(int(numbers[0]), int(numbers[1]))


def named_heads(heads: Sequence[Head], most: int) -> str:
    """The first heads by name, and how many more there are."""
    more = f" and {len(heads) - most} more" if len(heads) > most else ""
    return ", ".join(map(str, heads[:most])) + more


def head_values(name: str, values: Any, shape: Sequence[int]) -> Float64[Tensor, "layer head"]:
    """Read a measure of heads from a tensor, an array or nested lists; NaN where a head has none.

    Args:
        name: What the measure is called, for the messages.
        values: One row per layer, one column per head.
        shape: Layers of the model, and heads of each.

    Raises:
        TypeError: If these are no real numbers.
        ValueError: If the shape is another, a value is infinite, or all are NaN.
    """
    form = "give one row per layer and one column per head, NaN for heads to leave out"
    try:
        read = torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        msg = f"the values of {name} are no array of numbers ({error}): {form}"
        raise TypeError(msg) from error
    if read.is_complex():
        msg = f"the values of {name} are complex, and have no order: {form}"
        raise TypeError(msg)
    read = read.double()
    if read.shape != torch.Size(shape):
        msg = f"{name} has shape {list(read.shape)}, this model {list(shape)}: {form}"
        raise ValueError(msg)
    if bool(read.isinf().any()) or bool(read.isnan().all()):
        msg = f"{name} is infinite for a head, or NaN for all: {form}"
        raise ValueError(msg)
    return read.clone()
