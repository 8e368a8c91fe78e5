"""View of the attention of some heads, next to the rotary pairs that carry it."""

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
    """Attention pattern of each head, next to the dominant dimension of every query-key pair.

    At most 8 heads and 128 tokens are shown, one head opened at a time; the page lists what was cropped.

    Args:
        examples: What `head_examples` or `examples_from_cache` returned.
        heads: Which of its heads; all when None.

    Raises:
        ValueError: If the examples do not hold a head.
    """
    indices = examples.indices(heads)
    size = min(examples.n_detailed, MOST_TOKENS)
    shown = indices[:MOST_HEADS]
    notes = list(examples.notes)
    if len(shown) < len(indices):
        notes.append(f"The first {len(shown)} of {len(indices):,} heads are shown.")
    if size < len(examples.tokens):
        notes.append(f"The first {size} of {len(examples.tokens):,} tokens are shown.")
    tokens = axis_labels(examples.tokens[:size])
    patterns = examples.pattern[shown, :size, :size].nan_to_num()
    dominant = examples.dominant[shown, :size, :size]
    full = max(LEAST_FULL, float(patterns.flatten().quantile(FULL_COLOUR)))
    groups = [
        Group(
            summary=head,
            open=number == 0,
            parts=(
                _attention(head, tokens, patterns[number], full),
                _dominance(head, tokens, dominant[number], examples.n_pairs),
            ),
        )
        for number, head in enumerate(str(examples.heads[index]) for index in shown)
    ]
    return View(
        title=f"Attention, and the rotary pairs that carry it: {examples.model_name}",
        caption=_caption(dominant, examples.n_pairs),
        groups=tuple(groups),
        notes=tuple(notes),
        height=820,
    )


def _caption(dominant: Float[Tensor, "head query_pos key_pos"], n_pairs: int) -> tuple[str, ...]:
    axes = (
        "Rows are queries (destination), columns are keys (source). First, the attention of a query to a key; then "
        "the dominant dimension of the same two tokens: the rotary pair that carries their score, from 0, the fastest, "
        f"to {n_pairs - 1}, the slowest. Point at a cell for its numbers."
    )
    if bool(dominant.tril().isnan().any()):
        return axes, "Keys that a sliding window hides are drawn as 0, keys after the query in grey."
    return axes, "Keys after the query are masked, and grey."


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
