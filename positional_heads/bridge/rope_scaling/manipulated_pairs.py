"""Move the rotary pairs of some heads, inside a `with` block: freeze them, leave them out, turn them otherwise."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal, get_args

from positional_heads.bridge.active_edits import without_ablations
from positional_heads.bridge.active_extension import active_extension
from positional_heads.bridge.model import TransformerLensModel, heads_of_model, refuse_unsupported
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.rope_scaling.extension import ChosenHeads, Extension, activated
from positional_heads.bridge.rope_scaling.moved_pairs import How, Move, MovedPairs, move_of
from positional_heads.bridge.rotary_layer import RotaryModel
from positional_heads.core.arguments import checked
from positional_heads.core.heads import Head, Heads

Shared = Literal["split", "together"]
SHARED: tuple[Shared, ...] = get_args(Shared)


@checked
@contextmanager
def manipulated_pairs(
    model: TransformerLensModel,
    heads: Heads,
    pairs: Sequence[int] | None = None,
    how: How = "freeze",
    *,
    factor: float | None = None,
    to: Sequence[int] | None = None,
    n: int | None = None,
    shared: Shared | None = None,
) -> Iterator[TransformerLensModel]:
    """A block inside which rotary pairs of these heads turn otherwise, in every run: plain, cached, scored, generating.

    Only the scores of these heads are computed anew, from queries and keys before rotation; those of other heads keep
    every bit. Blocks may be nested: an inner one acts on what the outer one left. With `ablated_heads`, in either
    order, pairs are moved first.

    - `freeze`: `pairs` are turned at every position as at position 0, so they no longer know distance.
    - `zero`: `pairs` contribute nothing.
    - `scale`: `pairs` turn at `factor` times their frequency; 0 freezes them, below 0 they turn backwards.
    - `remap`: pair `pairs[i]` turns by the angle of pair `to[i]`.
    - `drop_slowest`, `drop_fastest`: the `n` slowest or fastest pairs are frozen (p-RoPE drops the slowest).
    - `swap_bands`: the `n` fastest pairs turn by the angles of the `n` slowest and the reverse: the fastest by that of
      the slowest.

    Args:
        model: A TransformerBridge.
        heads: Query heads, as Head(3, 7), (3, 7) or "L3H7", one or several; an empty list moves none.
        pairs: Which pairs, counted from 0, the fastest.
        how: What is done to them, see above.
        factor: Factor on their frequency, for `scale`.
        to: The pairs whose angles they take, for `remap`.
        n: Number of pairs, for the ways that count them; at most half of all for `swap_bands`.
        shared: Needed where these heads are only some of the query heads that read a key head: "split" moves the
            pairs of these heads alone, as if each read an own copy of its key head, which no edit of the keys could
            do; "together" moves those of all heads that read it.

    Yields:
        The model.

    Raises:
        ValueError: If `how` lacks an argument that it needs or has one that it does not use, a head has no such pair,
            pairs are repeated, a layer does not rotate, or `shared` is missing.
        UnsupportedModelError: If the model is not rotary, or its scores cannot be edited.
        RuntimeError: If an `extended_rope` block is active.
    """
    outer = active_extension(model)
    moved = getattr(outer, "method", None)
    if outer is not None and not isinstance(moved, MovedPairs):
        msg = (
            f"the model's rotation is extended by {outer.name}: pairs are moved by the model's own rotation, so leave "
            "the extended_rope block first"
        )
        raise RuntimeError(msg)
    given = {"pairs": pairs, "factor": factor, "to": to, "n": n}
    refuse_unsupported(model)
    with without_ablations(model):
        resolved = resolve_layers(model)
    named = sorted(set(heads_of_model(model, heads)))
    resolved.select([head.layer for head in named] or None)
    move = move_of(how, _with_readers(resolved, named, shared), given)
    for layer in sorted({head.layer for head in named}):
        move.refuse_unfit(resolved.layers[layer])
    method = MovedPairs([*(moved.moves if isinstance(moved, MovedPairs) else ()), *_acting(move)])
    chosen = _moved_heads(method, resolved)
    with ExitStack() as undo:
        if chosen != {} or outer is not None:
            undo.enter_context(activated(model, Extension(model, method, resolved, chosen, None, outer)))
        yield model


def _acting(move: Move) -> list[Move]:
    """The move, if it moves anything."""
    return [move] if move.heads and (move.pairs or move.n) else []


def _moved_heads(method: MovedPairs, resolved: RotaryModel) -> ChosenHeads:
    """Heads of which any pair turns otherwise than the model turns it."""
    layers = sorted({head.layer for move in method.moves for head in move.heads})
    moved = {layer: (~method.turns(resolved.layers[layer]).own).nonzero().flatten().tolist() for layer in layers}
    return {layer: heads for layer, heads in moved.items() if heads}


def _with_readers(resolved: RotaryModel, heads: Sequence[Head], shared: Shared | None) -> list[Head]:
    """The heads, and with "together" all heads that read their key heads.

    Raises:
        ValueError: If only some of a key head's readers are named, and `shared` does not say what that means.
    """
    every = dict.fromkeys(heads)
    for head in heads:
        rotary = resolved.layers[head.layer]
        readers = [Head(head.layer, reader) for reader in rotary.readers(head.head)]
        if shared is None and not set(readers) <= set(heads):
            named = ", ".join(map(str, readers))
            number = head.head // len(readers)
            msg = (
                f"key head {number} of layer {head.layer} is read by {named}, and only some of them are named: give "
                'shared="split" to move the pairs of the named heads alone, each as with an own copy of the key head, '
                'or shared="together" for all of its readers'
            )
            raise ValueError(msg)
        every.update(dict.fromkeys(readers if shared == "together" else []))
    return sorted(every)
