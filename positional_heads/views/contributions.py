"""What each rotary pair adds to the attention scores of one query, key by key."""

from jaxtyping import Float
from torch import Tensor

from positional_heads.core.arguments import checked
from positional_heads.core.heads import AnyHead, as_head
from positional_heads.results.head_examples import HeadExamples
from positional_heads.results.text import axis_labels
from positional_heads.views.tokens import coloured_tokens, largest
from positional_heads.views.view import DIVERGING, Cell, Group, HeatRow, HeatTable, Scale, View

MOST_KEYS = 128
MOST_ROWS = 64
MOST_CHOICES = 16
SHADES = 8
TOGETHER = "all pairs"


@checked
def contribution_view(examples: HeadExamples, head: AnyHead, query: int) -> View:
    """Contribution of each pair to the scores of one query: its keys coloured by a pair, and all pairs by all keys.

    The pairs of a key add up to its attention score before soft-cap and mask, but for channels without rotation. At
    most the last 128 keys and the 64 pairs that add most are shown; the page says what was cropped.

    Args:
        examples: What `head_examples` or `examples_from_cache` returned.
        head: Which of its heads.
        query: Position of the query, from 0, among the tokens whose query-key pairs are kept.

    Raises:
        ValueError: If the examples do not hold the head, or the query.
    """
    head = as_head(head)
    (place,) = examples.places([head])
    if not 0 <= query < examples.n_detailed:
        msg = (
            f"query {query} is not in these examples: every query-key pair is kept of positions 0 to "
            f"{examples.n_detailed - 1}; gather them with detailed={min(128, max(query + 1, 1))} and a text that long"
        )
        raise ValueError(msg)
    notes = list(examples.notes)
    first = max(0, query + 1 - MOST_KEYS)
    if first:
        notes.append(f"The last {MOST_KEYS} of {query + 1} keys are shown.")
    keys = slice(first, query + 1)
    added = examples.contributions[place, query, keys]
    hidden = examples.dominant[place, query, keys].isnan()
    added = added.masked_fill(hidden[:, None], 0)
    tokens = axis_labels(examples.tokens)
    names = [f"{tokens[position]} ({position})" for position in range(first, query + 1)]
    order = added.abs().mean(0).argsort(descending=True).tolist()
    rows, choices = sorted(order[:MOST_ROWS]), sorted(order[:MOST_CHOICES])
    if len(rows) < examples.n_pairs:
        notes.append(f"The {MOST_ROWS} of {examples.n_pairs} pairs that add most, in size, are shown.")
    columns = added[:, choices]
    together = added.sum(-1, keepdim=True)
    everything = columns.new_zeros(len(columns), len(choices) + 1)
    everything[:, :1], everything[:, 1:] = together, columns
    title = f"{head}, query {tokens[query]} ({query})"
    return View(
        title=f"Contribution of each pair: {title}, {examples.model_name}",
        caption=(
            f"What each rotary pair adds to the attention score of the query {tokens[query]} at position {query} with "
            "each key up to it, before soft-cap and mask. Pair 0 turns fastest. Keys are named with their position.",
        ),
        groups=(
            Group(
                (
                    coloured_tokens(
                        examples.tokens[keys],
                        everything,
                        [TOGETHER, *(f"pair {pair}" for pair in choices)],
                        f"keys of {title}",
                        round(largest(everything), 3),
                        "attention score, before mask and soft-cap",
                    ),
                )
            ),
            Group((_heat(added, rows, names, hidden, title),)),
        ),
        notes=tuple(notes),
        height=760,
    )


def _heat(
    added: Float[Tensor, "key_pos pair"], pairs: list[int], names: list[str], hidden: Tensor, title: str
) -> HeatTable:
    bound = largest(added)
    masked = hidden.tolist()
    rows = []
    for pair in pairs:
        values = added[:, pair].tolist()
        cells = [
            Cell("masked", f"{name}: hidden from this query")
            if off
            else Cell(_shade(value / bound), f"{name}, pair {pair}: {value:+.3f}")
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
