"""Attention of chosen heads, and beside it which rotary pairs carry it."""

from jaxtyping import Float
from torch import Tensor

from positional_heads.core.arguments import checked
from positional_heads.core.heads import Heads
from positional_heads.results.head_examples import HeadExamples
from positional_heads.results.text import axis_labels
from positional_heads.views.view import BLUES, BROWNS, Group, Panel, Scale, View

MOST_TOKENS = 128
MOST_HEADS = 8
FULL_COLOUR = 0.99
LEAST_FULL = 0.02


@checked
def attention_view(examples: HeadExamples, heads: Heads | None = None) -> View:
    """Attention pattern of each head, and beside it the dominant dimension of every query-key pair.

    At most 8 heads and 128 tokens are shown, one head opened at a time; the page says what was cropped.

    Args:
        examples: What `head_examples` or `examples_from_cache` returned.
        heads: Which of its heads; all when None.

    Raises:
        ValueError: If the examples do not hold a head.
    """
    places = examples.places(heads)
    size = min(examples.n_detailed, MOST_TOKENS)
    shown = places[:MOST_HEADS]
    notes = list(examples.notes)
    if len(shown) < len(places):
        notes.append(f"The first {len(shown)} of {len(places):,} heads are shown.")
    if size < len(examples.tokens):
        notes.append(f"The first {size} of {len(examples.tokens):,} tokens are shown.")
    tokens = axis_labels(examples.tokens[:size])
    patterns = examples.pattern[shown, :size, :size].nan_to_num()
    dominant = examples.dominant[shown, :size, :size]
    full = max(LEAST_FULL, float(patterns.flatten().quantile(FULL_COLOUR)))
    groups = [
        Group(
            summary=str(examples.heads[place]),
            open=index == 0,
            parts=(
                _attention(str(examples.heads[place]), tokens, patterns[index], full),
                _dominance(str(examples.heads[place]), tokens, dominant[index], examples.n_pairs),
            ),
        )
        for index, place in enumerate(shown)
    ]
    return View(
        title=f"Attention, and what carries it: {examples.model_name}",
        caption=_caption(dominant, examples.n_pairs),
        groups=tuple(groups),
        notes=tuple(notes),
        height=820,
    )


def _caption(dominant: Float[Tensor, "head query_pos key_pos"], n_pairs: int) -> tuple[str, ...]:
    said = (
        "Rows are queries (destination), columns are keys (source). First, how much a query attends to a key; "
        "then the dominant dimension of the same two tokens: which rotary pair carries their score, from 0, the "
        f"fastest, to {n_pairs - 1}, the slowest. Point at a cell for its numbers."
    )
    if bool(dominant.tril().isnan().any()):
        return said, "Keys that a window hides from a query are drawn as 0, those after it in grey."
    return said, "Keys after the query are hidden from it, and grey."


def _attention(head: str, tokens: list[str], pattern: Float[Tensor, "query_pos key_pos"], full: float) -> Panel:
    return Panel(
        component="AttentionPattern",
        props=_matrix(tokens, pattern, full, BLUES[-1]),
        heading=f"{head}: attention",
        label=f"Attention pattern of {head}, {len(tokens)} by {len(tokens)} tokens",
        scale=Scale("0", f"{full:.2g} or more", "share of the query's attention", BLUES),
    )


def _dominance(head: str, tokens: list[str], dominant: Float[Tensor, "query_pos key_pos"], n_pairs: int) -> Panel:
    return Panel(
        component="AttentionPattern",
        props=_matrix(tokens, dominant, max(n_pairs - 1, 1), BROWNS[-1]),
        heading=f"{head}: dominant dimension",
        label=f"Dominant dimension of {head}, {len(tokens)} by {len(tokens)} tokens",
        scale=Scale("0, fastest", f"{n_pairs - 1}, slowest", "pair index", BROWNS),
    )


def _matrix(
    tokens: list[str], values: Float[Tensor, "query_pos key_pos"], full: float, colour: str
) -> dict[str, object]:
    return {
        "tokens": tokens,
        "attention": [[round(value, 4) for value in row] for row in values.nan_to_num().tolist()],
        "minValue": -full,
        "maxValue": full,
        "positiveColor": colour,
        "zoomed": True,
    }
