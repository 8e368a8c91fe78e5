"""How one layer rotates: its pairs, phases, attention scores, and the entries that its mask hides."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from einops import einsum
from jaxtyping import Bool, Complex, Float, Int, Shaped
from torch import Tensor

from positional_heads.bridge.model import Record, TransformerLensModel, UnsupportedModelError
from positional_heads.core.bands import FreeChannels, unrotated
from positional_heads.core.contributions import expand_key_heads, head_planes
from positional_heads.core.number_ranges import number_ranges
from positional_heads.core.rotary import Layout, rotate

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest error that rounding explains, relative to the largest score: a few roundings of each precision. Mistakes in
layout, scale or mask make errors of order 1."""

Table = Literal["half", "adjacent", "single", "embed_positions"]


@dataclass(frozen=True)
class RotaryLayer:
    """How one layer rotates, as proven on a probe run.

    Attributes:
        layer: Index of the layer.
        source: Where rotated queries and keys come from: "hook" (`hook_rot_q/k` fire), "rebuilt" (rotated here from
            `hook_q/k`), or "interface" (read from Hugging Face's attention interface, because the bridge has no hooks
            inside this attention).
        layout: Which channels make a rotary pair.
        table: How the layer's cos and sin are laid out over channels.
        rotary_dim: Number of rotated channels; they come before the others.
        d_head: Width of a query head.
        n_heads: Number of query heads.
        scale: Attention scale: scores = scale * q . k.
        soft_cap: Cap of a tanh over the scaled scores, or None.
        holds: What the model's `hook_attn_scores` holds: scores, or the pattern in some architectures.
        error: Largest discrepancy with the model's own scores, relative to the largest score.
        frequencies: A hash of the frequency of each pair in the probe run, to five digits.
        sense: 1, or -1 where pairs rotate clockwise with position (NanoChat).
        plain: Whether a plain run was seen to show what the bridge does (see `bridge.plain_capture`).
            It says how the layer can be read, and nothing about what it computes, so it is no part of provenance.
        n_kv_heads: Number of key heads in the probe run; query heads share them evenly, in their order.
    """

    layer: int
    source: Literal["hook", "rebuilt", "interface"]
    layout: Layout
    table: Table
    rotary_dim: int
    d_head: int
    n_heads: int
    scale: float
    soft_cap: float | None
    holds: Literal["scores", "pattern"]
    error: float
    sense: int = 1
    frequencies: str = field(default="", repr=False)
    plain: bool = field(default=False, repr=False, compare=False)
    n_kv_heads: int = field(default=0, repr=False, compare=False)

    @property
    def provenance(self) -> dict[str, Any]:
        """What identifies the layer's rotation, as JSON."""
        return {name: value for name, value in asdict(self).items() if name not in {"plain", "n_kv_heads"}}

    @property
    def n_pairs(self) -> int:
        """Number of rotary pairs."""
        return self.rotary_dim // 2

    def readers(self, head: int) -> list[int]:
        """The query heads that read the key head of a query head, that one among them."""
        group = self.n_heads // self.n_kv_heads
        first = head // group * group
        return list(range(first, first + group))

    @property
    def records(self) -> Literal["scores", "pattern"]:
        """Whether records of the layer hold scores or the pattern; those from the interface always hold scores."""
        return "scores" if self.source == "interface" else self.holds

    def phase(
        self, model: TransformerLensModel, record: Record, positions: Int[Tensor, "#batch pos"]
    ) -> Complex[Tensor, "#batch pos pair"]:
        """Cos + i sin of each position and pair, from the layer's own tables."""
        if self.table == "embed_positions":
            table = embedded_positions(model, self.layer)
            sin, cos = table[positions.to(table.device)].float().chunk(2, dim=-1)
            return torch.complex(cos, sin)
        return table_phase(record["hook_cos"], self.sense * record["hook_sin"], self.table)

    def rotated_vectors(
        self, model: TransformerLensModel, record: Record, positions: Int[Tensor, "#batch pos"]
    ) -> tuple[Float[Tensor, "batch pos head d_head"], Float[Tensor, "batch pos kv_head d_head"]]:
        """Queries and keys after rotation, as the layer uses them, from one record of it."""
        if "hook_rot_q" in record and "hook_rot_k" in record:
            return record["hook_rot_q"], record["hook_rot_k"]
        query, key = unrotated_vectors(record, self.d_head)
        phase = self.phase(model, record, positions)
        return rotate(query, phase, self.layout), rotate(key, phase, self.layout)

    def planes(self, vectors: Float[Tensor, "batch pos any_head d_head"]) -> Float[Tensor, "batch head pos pair 2"]:
        """Rotary planes of queries or keys, for every query head."""
        return head_planes(vectors, self.layout, self.rotary_dim, self.n_heads)

    def free_channels(
        self,
        vectors: Float[Tensor, "batch pos any_head d_head"],
        phase: Complex[Tensor, "#batch pos pair"],
        heads: Int[Tensor, " chosen"] | None = None,
    ) -> FreeChannels:
        """Queries or keys before rotation, for some query heads; for every one when None.

        Args:
            vectors: The rotated ones.
            phase: What they were rotated by.
            heads: Which query heads.
        """
        vectors = expand_key_heads(vectors, self.n_heads)
        vectors = vectors if heads is None else vectors[:, :, heads]
        planes = head_planes(vectors, self.layout, self.rotary_dim, vectors.shape[2])
        rest = vectors[..., self.rotary_dim :].transpose(1, 2)
        return FreeChannels(unrotated(planes, phase[:, None]), rest.float())

    def scaled_scores(
        self, rot_q: Float[Tensor, "batch query_pos head d_head"], rot_k: Float[Tensor, "batch key_pos kv_head d_head"]
    ) -> Float[Tensor, "batch head query_pos key_pos"]:
        """Attention scores before soft-cap and mask, `scale * q . k` in float32."""
        key = expand_key_heads(rot_k, rot_q.shape[2]).float()
        return einsum(rot_q.float(), key, "b query head d, b key head d -> b head query key") * self.scale

    def scores(
        self, rot_q: Float[Tensor, "batch query_pos head d_head"], rot_k: Float[Tensor, "batch key_pos kv_head d_head"]
    ) -> Float[Tensor, "batch head query_pos key_pos"]:
        """Attention scores before the mask: scaled, soft-capped, in float32."""
        return self.soft_capped(self.scaled_scores(rot_q, rot_k))

    def soft_capped(self, scores: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """`cap * tanh(scores / cap)`, as Gemma-2 does; the scores themselves in layers without a cap."""
        return scores if self.soft_cap is None else self.soft_cap * torch.tanh(scores / self.soft_cap)

    def masked_entries(self, scores: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """Entries that the model hides: scores up to `mask_limit`, or 0 where the record has the pattern."""
        return scores == 0 if self.records == "pattern" else scores <= mask_limit(scores)

    def score_error(
        self,
        rebuilt: Float[Tensor, "batch head query_pos key_pos"],
        own: Float[Tensor, "batch head query_pos key_pos"],
        hidden: Bool[Tensor, "batch #head query_pos key_pos"],
    ) -> float:
        """Largest discrepancy between rebuilt scores and the model's own, relative to the largest of them.

        Args:
            rebuilt: Scores before the mask.
            own: The scores, or the pattern, in a record.
            hidden: Entries that the mask hides.
        """
        if self.records == "pattern":
            rebuilt = rebuilt.masked_fill(hidden, -torch.inf).softmax(-1).nan_to_num()
        own = own.float()
        difference, size = ((x.masked_fill(hidden, 0)).abs().max() for x in (rebuilt - own, own))
        return float(difference / size.clamp(min=1e-3))


def shown_entries(mask: Shaped[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Entries that a mask of transformers shows: it is True there, or 0 where the others are very negative."""
    return mask if mask.dtype == torch.bool else mask > mask_limit(mask)


@dataclass(frozen=True)
class RotaryModel:
    """Every layer of a model: those that rotate, and why the others are not scored."""

    layers: dict[int, RotaryLayer]
    unscored: dict[int, str]

    def __repr__(self) -> str:
        by_kind: dict[str, list[int]] = {}
        for layer, rotary in self.layers.items():
            kind = f"{rotary.n_pairs} {rotary.layout} pairs in {rotary.n_heads} heads of {rotary.d_head} channels"
            by_kind.setdefault(kind, []).append(layer)
        for layer, reason in self.unscored.items():
            by_kind.setdefault(f"not scored, {reason}", []).append(layer)
        return (
            f"RotaryModel({'; '.join(f'layers {number_ranges(layers)}: {kind}' for kind, layers in by_kind.items())})"
        )

    def select(self, layers: Sequence[int] | None) -> list[RotaryLayer]:
        """The rotary layers with these indices, in order; all when None.

        Raises:
            ValueError: If a layer does not exist or does not rotate.
        """
        if layers is None:
            return list(self.layers.values())
        last = len(self.layers) + len(self.unscored) - 1
        if not layers:
            msg = f"no layer given: name some of 0 to {last}, or leave layers= out for all that rotate"
            raise ValueError(msg)
        for layer in layers:
            if not 0 <= layer <= last:
                msg = f"layer {layer} does not exist: the model has layers 0 to {last}"
                raise ValueError(msg)
            if layer in self.unscored:
                msg = f"layer {layer} cannot be scored: {self.unscored[layer]}"
                raise ValueError(msg)
        return [self.layers[layer] for layer in sorted(set(layers))]


def mask_limit(scores: Float[Tensor, "*shape"]) -> float:
    """The highest score that marks a masked entry: near the dtype's minimum, or -inf.

    The margin is wide because the minimum may have been added to a score, or divided by the attention scale afterwards
    (CodeGen). In float16 the margin is narrow, since real scores can be large compared to the minimum. Float32 scores
    of a float16 model (OLMo-2) are masked with float16's minimum.
    """
    lowest = torch.finfo(scores.dtype).min / 1e3
    if scores.dtype == torch.float16 or not scores.numel() or not bool(scores.amin() <= lowest):
        return torch.finfo(torch.float16).min / 2
    return lowest


def unrotated_vectors(
    record: Record, d_head: int
) -> tuple[Float[Tensor, "batch pos head d_head"], Float[Tensor, "batch pos kv_head d_head"]]:
    """Queries and keys before rotation, after QK-norm if there is one, with position before head."""

    def vectors(normed: str, plain: str) -> Float[Tensor, "batch pos any_head d_head"]:
        tensor = record.get(normed, record[plain])
        if tensor.ndim == 3:  # noqa: PLR2004  heads not split yet; OLMo-2 normalises all heads at once
            return tensor.unflatten(-1, (-1, d_head))
        return tensor.transpose(1, 2) if normed in record else tensor

    return vectors("hook_q_normed", "hook_q"), vectors("hook_k_normed", "hook_k")


def table_layout(cos: Float[Tensor, "*lead width"], sin: Float[Tensor, "*lead width"]) -> Table:
    """How cos and sin repeat over channels: in halves, in adjacent channels, or once per pair (GPT-OSS)."""
    half, odd = divmod(cos.shape[-1], 2)
    tables = (cos, sin)
    if not odd and all(torch.equal(table[..., :half], table[..., half:]) for table in tables):
        return "half"
    if not odd and all(torch.equal(table[..., ::2], table[..., 1::2]) for table in tables):
        return "adjacent"
    return "single"


def table_phase(
    cos: Float[Tensor, "#batch pos width"], sin: Float[Tensor, "#batch pos width"], table: Table
) -> Complex[Tensor, "#batch pos pair"]:
    """Cos + i sin of each pair, from tables that may repeat it."""
    n_pairs = cos.shape[-1] if table == "single" else cos.shape[-1] // 2
    step = 2 if table == "adjacent" else 1
    return torch.complex(cos[..., : n_pairs * step : step].float(), sin[..., : n_pairs * step : step].float())


def embedded_positions(model: TransformerLensModel, layer: int) -> Any:
    """The table of sin and cos of every position that GPT-J and CodeGen keep in the attention module, or None."""
    component = getattr(model.blocks[layer].attn, "original_component", None)
    return getattr(component, "embed_positions", None)


def refuse_non_finite(layer: int, query: Tensor, key: Tensor, spans: Sequence[tuple[int, int]]) -> None:
    """Refuse queries and keys with NaN or infinite values among the real tokens.

    Args:
        layer: The layer, for the message.
        query: Queries [batch pos head d_head].
        key: Keys [batch pos kv_head d_head].
        spans: First, and one past the last, real token of each row.

    Raises:
        UnsupportedModelError: If a value is not finite.
    """
    for row, (start, stop) in enumerate(spans):
        for name, tensor in (("queries", query), ("keys", key)):
            if tensor[row, start:stop].sum(dtype=torch.float32).isfinite():
                continue  # one sum takes a tenth of the time of testing every value
            bad = ~torch.isfinite(tensor[row, start:stop]).all(dim=-1).all(dim=0)
            if bad.any():
                heads = ", ".join(str(head) for head in bad.nonzero().flatten().tolist())
                msg = (
                    f"layer {layer}: the {name} of head {heads} are not finite. A weight is NaN or infinite, or the "
                    "model overflows in this precision: check the checkpoint, or load it in float32"
                )
                raise UnsupportedModelError(msg)
