"""Rotary pairs moved head by head: frozen, zeroed, turned at another frequency, or by another pair's angle.

Each pair of a head has a *turn*: the pair whose angle it takes, a factor on that pair's frequency, and whether it
contributes at all. A move changes turns, and later moves change what earlier ones left (docs/equations.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Complex, Float, Float64, Int
from torch import Tensor

from positional_heads.bridge.rope_scaling.method import Method
from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.core.edit_words import MANIPULATED
from positional_heads.core.heads import Head

How = Literal["freeze", "zero", "scale", "remap", "drop_slowest", "drop_fastest", "swap_bands"]
HOW: tuple[How, ...] = get_args(How)
USES: dict[How, tuple[str, ...]] = {
    "freeze": ("pairs",),
    "zero": ("pairs",),
    "scale": ("pairs", "factor"),
    "remap": ("pairs", "to"),
    "drop_slowest": ("n",),
    "drop_fastest": ("n",),
    "swap_bands": ("n",),
}
"""The arguments that each way of moving needs; it takes no others."""
EXAMPLES = {"pairs": "[0, 1]", "factor": "0.5", "to": "[1, 0]", "n": "4"}
"""What messages give as an example of each."""


class Turns(NamedTuple):
    """How the pairs of heads turn.

    Attributes:
        source: The pair whose angle each takes.
        factor: Factor on the frequency of that pair.
        present: Whether it contributes.
    """

    source: Int[Tensor, "*head pair"]
    factor: Float64[Tensor, "*head pair"]
    present: Bool[Tensor, "*head pair"]

    @property
    def own(self) -> Bool[Tensor, "*head"]:
        """Heads whose pairs all turn as the model turns them."""
        still = torch.arange(self.source.shape[-1])
        return ((self.source == still) & (self.factor == 1) & self.present).all(-1)


@dataclass(frozen=True)
class Move:
    """One way of moving pairs of some heads.

    Attributes:
        how: What is done to the pairs.
        heads: The query heads.
        pairs: Which pairs, in ways that name them.
        factor: Factor on their frequency, in "scale".
        to: The pairs whose angles they take, in "remap".
        n: Number of pairs, in ways that count them from the slow or the fast end.
    """

    how: How
    heads: tuple[Head, ...]
    pairs: tuple[int, ...] | None = None
    factor: float | None = None
    to: tuple[int, ...] | None = None
    n: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The move as JSON."""
        given = {name: getattr(self, name) for name in USES[self.how]}
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
        return {"how": self.how, "heads": [str(head) for head in self.heads], **listed}

    def after(self, turns: Turns) -> Turns:
        """How the pairs of one head turn after the move, given how they turned before."""
        source, factor, present = (part.clone() for part in turns)
        n_pairs, n = len(source), self.n or 0
        pairs = list(self.pairs or ())
        if self.how == "zero":
            present[pairs] = False
        elif self.how == "scale":
            assert self.factor is not None
            factor[pairs] *= self.factor
        elif self.how in {"remap", "swap_bands"}:
            mirrored = [*range(n), *range(n_pairs - n, n_pairs)]
            there = [n_pairs - 1 - pair for pair in mirrored] if self.how == "swap_bands" else list(self.to or ())
            pairs = mirrored if self.how == "swap_bands" else pairs
            source[pairs], factor[pairs] = source[there], factor[there]
        else:
            ends = {"freeze": pairs, "drop_slowest": [*range(n_pairs - n, n_pairs)], "drop_fastest": [*range(n)]}
            factor[ends[self.how]] = 0
        return Turns(source, factor, present)

    def refuse_unfit(self, rotary: RotaryLayer) -> None:
        """Refuse pairs that its heads of a layer do not have.

        Raises:
            ValueError: If there are any.
        """
        head = next((head for head in self.heads if head.layer == rotary.layer), None)
        if head is None:
            return
        has = f"{head} has {rotary.n_pairs} pairs"
        for name, pairs in (("pairs", self.pairs), ("to", self.to)):
            unknown = [pair for pair in pairs or () if not 0 <= pair < rotary.n_pairs]
            if unknown:
                msg = f"{name}={list(pairs or ())}: {has} from 0, the fastest, and no pair {unknown[0]}"
                raise ValueError(msg)
        most = rotary.n_pairs // 2 if self.how == "swap_bands" else rotary.n_pairs
        if self.n is not None and not 0 <= self.n <= most:
            half = ", and the n fastest and the n slowest must not overlap" if self.how == "swap_bands" else ""
            msg = f"n={self.n}: {has}{half}: give 0 to {most}"
            raise ValueError(msg)


@dataclass(frozen=True)
class MovedPairs(Method):
    """Pairs of some query heads turned otherwise than the model turns them; see `manipulated_pairs`.

    It starts from the model's own rotation, an extension of its own included: an attention factor of YaRN stays.

    Attributes:
        moves: What is done, the first first.
    """

    moves: Sequence[Move]
    name: str = field(default=MANIPULATED, init=False)
    rewrites_scores: ClassVar[bool] = True
    edits_own: ClassVar[bool] = True
    extends: ClassVar[bool] = False

    @property
    def settings(self) -> dict[str, Any]:
        """The moves as JSON."""
        return {"moves": [move.settings for move in self.moves]}

    def turns(self, rotary: RotaryLayer) -> Turns:
        """How the pairs of every query head of a layer turn."""
        found = [self._of_head(Head(rotary.layer, head), rotary.n_pairs) for head in range(rotary.n_heads)]
        return Turns(*(torch.stack(parts) for parts in zip(*found, strict=True)))

    def edited(
        self, phase: Complex[Tensor, "pos pair"], rotary: RotaryLayer, frequency: Float[Tensor, " pair"]
    ) -> Complex[Tensor, "head pos pair"]:
        """The model's own phases, each pair's by its turn."""
        source, factor, present = (part.to(phase.device) for part in self.turns(rotary))
        own = phase[:, source].transpose(0, 1)
        first = own[:, :1]
        turned = torch.where(factor[:, None] == 0, first, own)
        other = (factor != 0) & (factor != 1)
        if bool(other.any()):
            # a pair that does not turn in the model does not turn faster, whatever its configuration says
            turning = (phase != phase[:1]).any(0)
            speed = factor * torch.where(turning, frequency.double().to(phase.device), 0)[source]
            angle = torch.arange(len(phase), device=phase.device).double()[:, None] * speed[:, None]
            scaled = torch.polar(torch.ones_like(angle), angle) * first
            turned = torch.where(other[:, None], scaled.to(phase.dtype), turned)
        return torch.where(present[:, None], turned, 0)

    def refuse_unfit(self, rotary: RotaryLayer) -> None:
        """Refuse pairs that heads of this layer do not have.

        Raises:
            ValueError: If there are any.
        """
        for move in self.moves:
            move.refuse_unfit(rotary)

    def _of_head(self, head: Head, n_pairs: int) -> Turns:
        turns = Turns(torch.arange(n_pairs), torch.ones(n_pairs).double(), torch.ones(n_pairs, dtype=torch.bool))
        for move in self.moves:
            turns = move.after(turns) if head in move.heads else turns
        return turns


def move_of(how: How, heads: Sequence[Head], given: Mapping[str, Any]) -> Move:
    """A move by its arguments, if they go with it.

    Args:
        how: What is done to the pairs.
        heads: The query heads.
        given: pairs, factor, to and n; None for those not given.

    Raises:
        ValueError: If it needs another argument, does not use one, or pairs are repeated.
    """
    # what is too much first: it tells which way was meant
    for name in (name for name, value in given.items() if value is not None and name not in USES[how]):
        users = [repr(other) for other in HOW if name in USES[other]]
        msg = f"{name}= goes with how={' or '.join(users)}, not with how={how!r}"
        raise ValueError(msg)
    for name in (name for name in USES[how] if given[name] is None):
        msg = f"how={how!r} needs {name}=, e.g. {name}={EXAMPLES[name]}"
        raise ValueError(msg)
    pairs, to = (None if given[name] is None else tuple(map(int, given[name])) for name in ("pairs", "to"))
    if pairs is not None and len(set(pairs)) < len(pairs):
        repeated = next(pair for pair in pairs if pairs.count(pair) > 1)
        msg = f"pairs={list(pairs)}: pair {repeated} is named twice, name each once"
        raise ValueError(msg)
    if to is not None and len(to) != len(pairs or ()):
        msg = f"to={list(to)} has {len(to)} pairs, pairs= has {len(pairs or ())}: pair pairs[i] gets the angle of to[i]"
        raise ValueError(msg)
    return Move(how, tuple(heads), pairs, given["factor"], to, given["n"])
