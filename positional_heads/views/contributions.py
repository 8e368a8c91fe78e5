"""View of the contribution of each rotary pair to the attention scores of one query, key by key."""

import torch
from jaxtyping import Float
from torch import Tensor

from positional_heads.core.arguments import checked
from positional_heads.core.heads import AnyHead
from positional_heads.results.head_examples import HeadExamples
from positional_heads.results.text import axis_labels, signed
from positional_heads.views.tokens import coloured_tokens, largest
from positional_heads.views.view import DIVERGING, Group, HeatCell, HeatRow, HeatTable, Scale, View

MOST_KEYS = 128
MOST_ROWS = 64
MOST_CHOICES = 16
SHADES = 8
TOGETHER = "all pairs"


@checked
def contribution_view(examples: HeadExamples, head: AnyHead, query: int) -> View:
    """Contribution of each pair to the scores of one query: its keys coloured by a pair, and all pairs by all keys.

    The contributions of a key add up to its attention score before soft-cap and mask, except for channels without
    rotation. At most the last 128 keys and the 64 largest pairs are shown; the page lists what was cropped.

    Args:
        examples: What `head_examples` or `examples_from_cache` returned.
        head: Which of its heads.
        query: Position of the query, from 0, among the tokens of which every query-key pair is kept.

    Raises:
        ValueError: If the examples do not hold the head, or the query.
    """
    (index,) = examples.indices([head])
    _refuse_missing_query(examples, query)
    notes = list(examples.notes)
    first = max(0, query + 1 - MOST_KEYS)
    if first:
        notes.append(f"The last {MOST_KEYS} of {query + 1} keys are shown.")
    keys = slice(first, query + 1)
    contributions = examples.contributions[index, query, keys]
    hidden = examples.dominant[index, query, keys].isnan()
    contributions = contributions.masked_fill(hidden[:, None], 0)
    tokens = axis_labels(examples.tokens)
    names = [f"{tokens[position]} ({position})" for position in range(first, query + 1)]
    order = contributions.abs().mean(0).argsort(descending=True).tolist()
    rows, choices = sorted(order[:MOST_ROWS]), sorted(order[:MOST_CHOICES])
    if len(rows) < examples.n_pairs:
        notes.append(f"The {MOST_ROWS} of {examples.n_pairs} pairs with the largest contributions are shown.")
    columns = torch.cat([contributions.sum(-1, keepdim=True), contributions[:, choices]], dim=-1)
    title = f"{examples.heads[index]}, query {tokens[query]} ({query})"
    return View(
        title=f"Contribution of each pair: {title}, {examples.model_name}",
        caption=(
            f"Contribution of each rotary pair to the attention score of the query {tokens[query]} at position {query} "
            "with each key up to it, before soft-cap and mask. Pair 0 is the fastest; keys are named with positions.",
        ),
        groups=(
            Group(
                (
                    coloured_tokens(
                        examples.tokens[keys],
                        columns,
                        [TOGETHER, *(f"pair {pair}" for pair in choices)],
                        f"keys of {title}",
                        round(largest(columns), 3),
                        "attention score, before mask and soft-cap",
                    ),
                )
            ),
            Group((_heat(contributions, rows, names, hidden, title),)),
        ),
        notes=tuple(notes),
        height=760,
    )


def _refuse_missing_query(examples: HeadExamples, query: int) -> None:
    if not 0 <= query < examples.n_detailed:
        msg = (
            f"query {query} is not in these examples: every query-key pair is kept of positions 0 to "
            f"{examples.n_detailed - 1}; gather them with detailed={min(128, max(query + 1, 1))} and a text that long"
        )
        raise ValueError(msg)


def _heat(
    contributions: Float[Tensor, "key_pos pair"], pairs: list[int], names: list[str], hidden: Tensor, title: str
) -> HeatTable:
    bound = largest(contributions)
    masked = hidden.tolist()
    rows = []
    for pair in pairs:
        values = contributions[:, pair].tolist()
        cells = [
            HeatCell("masked", f"{name}: masked")
            if off
            else HeatCell(_shade(value / bound), f"{name}, pair {pair}: {signed(value)}")
            for name, value, off in zip(names, values, masked, strict=True)
        ]
        rows.append(HeatRow(str(pair), tuple(cells)))
    return HeatTable(
        heading=f"Every pair by every key: {title}",
        corner="pair",
        columns=tuple(names),
        rows=tuple(rows),
        scale=Scale(f"-{bound:.3g}", f"{bound:.3g}", "attention score, before mask and soft-cap", DIVERGING),
    )


def _shade(share: float) -> str:
    """A colour class, from -1 (n8) over 0 (p0) to 1 (p8)."""
    step = min(SHADES, round(abs(share) * SHADES))
    return f"{'n' if share < 0 else 'p'}{step}"
