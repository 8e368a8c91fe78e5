"""View of a text whose tokens are coloured by a measure of some heads.

circuitsvis keeps the scale of the first choice for all of them, so all choices of one view share a unit and a scale.
"""

from collections.abc import Sequence
from html import escape
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from positional_heads.core.arguments import checked
from positional_heads.core.heads import Heads
from positional_heads.results.head_examples import HeadExamples
from positional_heads.results.text import readable_tokens, rounded
from positional_heads.views.view import BLUE_TO_RED, WHITE_TO_RED, Group, Numbers, Panel, Scale, View

Measure = Literal["dominant", "dominant_plain", "distance", "contribution"]
MOST_TOKENS = 2000
MOST_HEADS = 8
MOST_PAIRS = 16
MOST_ROWS = 128
FULL_COLOUR = 0.95
ROUNDING = 1.001


class _Meaning(NamedTuple):
    """A measure of tokens: its field in `HeadExamples`, and how a page describes it."""

    field: str
    title: str
    caption: str
    unit: str


_OVER_KEYS = "the mean over the keys that it sees, weighted by its attention to them."
MEANINGS: dict[str, _Meaning] = {
    "dominant": _Meaning(
        "weighted_dominant",
        "mean dominant dimension",
        f"Each token, as a query, is coloured by its dominant dimension: {_OVER_KEYS}",
        "pair index, higher is slower",
    ),
    "dominant_plain": _Meaning(
        "plain_dominant",
        "mean dominant dimension, unweighted",
        "Each token, as a query, is coloured by its dominant dimension, the unweighted mean over its visible keys.",
        "pair index, higher is slower",
    ),
    "distance": _Meaning(
        "mean_distance",
        "mean distance",
        f"Each token, as a query, is coloured by how far back it attends: {_OVER_KEYS}",
        "tokens",
    ),
    "contribution": _Meaning(
        "mean_contributions",
        "contribution of a pair",
        f"Each token, as a query, is coloured by the contribution of a rotary pair to its scores: {_OVER_KEYS}",
        "attention score, before mask and soft-cap",
    ),
}


@checked
def token_view(
    examples: HeadExamples,
    measure: Measure = "dominant",
    *,
    heads: Heads | None = None,
    pairs: Sequence[int] | None = None,
) -> View:
    """The text with every token coloured by one measure, with a choice of heads, or of pairs of one head.

    At most 2000 tokens, 8 heads and 16 pairs are shown; the page lists what was cropped.

    Args:
        examples: What `head_examples` or `examples_from_cache` returned.
        measure: "dominant" (weighted by attention), "dominant_plain" (unweighted), "distance" (weighted by
            attention, in tokens), or "contribution" (of one pair, in units of the attention score).
        heads: Which heads to choose from, all when None; "contribution" shows the first of them.
        pairs: Which pairs to choose from; those with the largest contributions when None. For "contribution" only.

    Raises:
        ValueError: If there is no such measure, head or pair.
    """
    if measure not in MEANINGS:
        msg = f"measure {measure!r}: choose one of {', '.join(MEANINGS)}"
        raise ValueError(msg)
    if pairs is not None and measure != "contribution":
        msg = f"pairs go with measure 'contribution', not with {measure!r}"
        raise ValueError(msg)
    meaning, notes = MEANINGS[measure], list(examples.notes)
    tokens = examples.tokens[:MOST_TOKENS]
    if len(tokens) < len(examples.tokens):
        notes.append(f"The first {len(tokens)} of {len(examples.tokens):,} tokens are shown.")
    indices = examples.indices(heads)
    values: Tensor = getattr(examples, meaning.field)[:, : len(tokens)]
    title = meaning.title
    caption: tuple[str, ...] = (meaning.caption,)
    if measure == "contribution":
        title = f"{title} of {examples.heads[indices[0]]}"
        if pairs is None:
            caption = (*caption, "The pairs with the largest contributions come first; pair 0 is the fastest.")
        chosen = _chosen_pairs(values[indices[0]], pairs, notes)
        columns, labels = values[indices[0]][:, chosen], [f"pair {pair}" for pair in chosen]
    else:
        if len(indices) > MOST_HEADS:
            notes.append(f"The first {MOST_HEADS} of {len(indices):,} heads are shown.")
        columns = values[indices[:MOST_HEADS]].T
        labels = [str(examples.heads[index]) for index in indices[:MOST_HEADS]]
    panel = coloured_tokens(tokens, columns, labels, title, _bound(measure, columns, examples), meaning.unit)
    return View(
        title=f"Tokens by {title}: {examples.model_name}",
        caption=(*caption, "Choose by pointing or clicking; point at a token for its numbers."),
        groups=(Group((panel,)), Group((_numbers(tokens, columns, labels),))),
        notes=tuple(notes),
        height=520,
    )


@checked
def coloured_tokens(
    tokens: Sequence[str], values: Float[Tensor, "pos label"], labels: list[str], title: str, bound: float, unit: str
) -> Panel:
    """Tokens coloured by one of several columns of numbers, all on the scale from -bound (or 0) to bound."""
    finite = values.nan_to_num()
    signed = bool((finite < 0).any())
    shown = readable_tokens(tokens)
    return Panel(
        component="ColoredTokensMulti",
        props={
            "tokens": [escape(token) for token in shown],
            "values": [[round(value, 4) for value in row] for row in finite.tolist()],
            "labels": labels,
            "positiveBounds": [bound] * len(labels),
            "negativeBounds": [-bound] * len(labels),
        },
        heading=title[0].upper() + title[1:],
        label=f"{len(shown)} tokens coloured by {title}, with a choice of {', '.join(labels)}",
        scale=Scale(
            f"-{bound:.3g}{' or less' if float(finite.min()) < -bound * ROUNDING else ''}" if signed else "0",
            f"{bound:.3g}{' or more' if float(finite.max()) > bound * ROUNDING else ''}",
            unit,
            BLUE_TO_RED if signed else WHITE_TO_RED,
        ),
    )


def _bound(measure: str, columns: Tensor, examples: HeadExamples) -> float:
    """The value of full colour: the slowest pair, or the 95 % quantile of the sizes."""
    if measure.startswith("dominant"):
        return float(max(examples.n_pairs - 1, 1))
    return round(max(1e-3, float(columns.nan_to_num().abs().flatten().quantile(FULL_COLOUR))), 3)


def _chosen_pairs(values: Float[Tensor, "pos pair"], pairs: Sequence[int] | None, notes: list[str]) -> list[int]:
    n_pairs = values.shape[1]
    if pairs is None:
        strongest = values.nan_to_num().abs().mean(0).argsort(descending=True)[:MOST_PAIRS]
        if n_pairs > MOST_PAIRS:
            notes.append(f"The {MOST_PAIRS} of {n_pairs} pairs with the largest contributions are offered.")
        return [int(pair) for pair in strongest]
    for pair in pairs:
        if not 0 <= pair < n_pairs:
            msg = f"pair {pair} does not exist: pairs go from 0 to {n_pairs - 1}"
            raise ValueError(msg)
    if not pairs:
        msg = "no pairs asked for: give at least one, or None for those with the largest contributions"
        raise ValueError(msg)
    if len(pairs) > MOST_PAIRS:
        notes.append(f"The first {MOST_PAIRS} of {len(pairs)} pairs are offered.")
    return list(pairs[:MOST_PAIRS])


def _numbers(tokens: Sequence[str], values: Float[Tensor, "pos label"], labels: list[str]) -> Numbers:
    shown = readable_tokens(tokens[:MOST_ROWS])
    part = "" if len(shown) == len(tokens) else f", first {len(shown)} tokens"
    rows = [
        (f"{index}", token, *("unknown" if value != value else rounded(value) for value in row))  # noqa: PLR0124  NaN
        for index, (token, row) in enumerate(zip(shown, values[: len(shown)].tolist(), strict=True))
    ]
    return Numbers(f"The numbers as a table{part}", ("position", "token", *labels), tuple(rows))


@checked
def largest(values: Tensor) -> float:
    """The largest absolute value, at least 0.001."""
    return max(1e-3, float(torch.nan_to_num(values).abs().amax()))
