"""What does each layer of this model do with positions, and can we prove it?

Read from live tensors, never from `model.cfg`, which is wrong or empty for several families. A short probe run tells,
per layer, where rotated queries and keys come from; rotating the unrotated ones settles the pair layout; and q . k must
give the model's own attention scores. What does not hold is refused by name: no silent wrong numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from einops import einsum
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from positional_heads.bridge.active import active_extension
from positional_heads.bridge.attention_interface import ROTATED, attention_module, distance, reading_attention, turns
from positional_heads.bridge.frequencies import proven_frequencies
from positional_heads.bridge.model import (
    SCORES,
    TransformerLensModel,
    UnsupportedModelError,
    layers_with_attention,
    refuse_unsupported,
)
from positional_heads.bridge.recording import Record, record_layers
from positional_heads.core.arguments import checked
from positional_heads.core.contributions import expand_key_heads
from positional_heads.core.rotary import LAYOUTS, Layout, rotate

PROBE_TOKENS = 16
MOVED = 7
"""Tokens by which positions are moved to see what rotates: a few radians for the fastest pairs."""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest error relative to the largest score: a few roundings of the model's own precision. Real mistakes are O(1)."""

Table = Literal["half", "adjacent", "single", "embed_positions"]


@dataclass(frozen=True)
class RotaryLayer:
    """How one layer rotates, as proven on a probe run.

    Attributes:
        layer: Index of the layer.
        source: Where rotated queries and keys come from: `hook_rot_q/k` fire, or they are rebuilt from `hook_q/k`, or
            Hugging Face's attention interface hands them over, because the bridge leaves attention to it.
        layout: Which channels make a rotary pair.
        table: How the layer's cos and sin are laid out over channels.
        rotary_dim: Number of rotated channels, in front of the others.
        d_head: Width of a query head.
        n_heads: Number of query heads.
        scale: Attention scale: scores = scale * q . k.
        soft_cap: Cap of a tanh over the scaled scores, or None.
        holds: What the model's `hook_attn_scores` really holds.
        error: Largest discrepancy with the model's own scores, relative to the largest score.
        frequencies: A hash of how fast each pair turned in the probe run, to five digits.
        sense: 1, or -1 where pairs turn the other way with position (NanoChat).
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

    @property
    def n_pairs(self) -> int:
        """Number of rotary pairs."""
        return self.rotary_dim // 2

    @property
    def records(self) -> Literal["scores", "pattern"]:
        """What a record of the layer holds as its scores; the interface gives scores where the hook has the pattern."""
        return "scores" if self.source == "interface" else self.holds


@dataclass(frozen=True)
class RotaryModel:
    """Every layer of a model: those that rotate, and why the others are not scored."""

    layers: dict[int, RotaryLayer]
    unscored: dict[int, str]

    def __repr__(self) -> str:
        alike: dict[str, list[int]] = {}
        for layer, rotary in self.layers.items():
            kind = f"{rotary.n_pairs} {rotary.layout} pairs in {rotary.n_heads} heads of {rotary.d_head} channels"
            alike.setdefault(kind, []).append(layer)
        for layer, reason in self.unscored.items():
            alike.setdefault(f"not scored, {reason}", []).append(layer)
        said = "; ".join(f"layers {_ranges(layers)}: {kind}" for kind, layers in alike.items())
        return f"RotaryModel({said})"

    def select(self, layers: list[int] | None, n_layers: int) -> list[RotaryLayer]:
        """The rotary layers asked for, all of them when None.

        Raises:
            ValueError: If a layer does not exist or does not rotate.
        """
        if layers is None:
            return list(self.layers.values())
        if not layers:
            msg = f"no layer given: name some of 0 to {n_layers - 1}, or leave layers= out for all that rotate"
            raise ValueError(msg)
        for layer in layers:
            if not 0 <= layer < n_layers:
                msg = f"layer {layer} does not exist: the model has layers 0 to {n_layers - 1}"
                raise ValueError(msg)
            if layer in self.unscored:
                msg = f"layer {layer} cannot be scored: {self.unscored[layer]}"
                raise ValueError(msg)
        return [self.layers[layer] for layer in sorted(set(layers))]


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers in short: 0-3, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


@checked
def resolve_layers(model: TransformerLensModel) -> RotaryModel:
    """Find out and prove, layer by layer, how the model rotates.

    Raises:
        UnsupportedModelError: If the model has no rotary layer, or a layer does not reproduce the model's own scores.
    """
    refuse_unsupported(model)
    extension = active_extension(model)
    if extension is not None and extension.rewrites_scores:
        return extension.resolved  # proven before scores were rewritten; each run is proven band by band
    vocabulary = int(model.cfg.d_vocab)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (1, PROBE_TOKENS), generator=generator).to(model.cfg.device)
    found: dict[int, RotaryLayer] = {}
    unscored = dict.fromkeys(range(model.cfg.n_layers), "it has no attention")

    def note(layer: int, resolved: RotaryLayer | None) -> None:
        if resolved is None:
            unscored[layer] = "it has no rotary embedding (NoPE): no dimension has a wavelength there"
        else:
            found[layer] = resolved
            del unscored[layer]

    def visit(layer: int, record: Record) -> None:
        if "hook_cos" in record or "hook_rot_q" in record or _embedded(model, layer) is not None:
            note(layer, _resolve_layer(model, layer, record))

    with_attention = layers_with_attention(model)
    record_layers(model, tokens, None, with_attention, visit)
    silent = [layer for layer, reason in unscored.items() if reason == "it has no attention"]
    delegated = [layer for layer in silent if attention_module(model, layer) is not None]
    for layer in set(silent).intersection(with_attention).difference(delegated):
        msg = (
            f"layer {layer}: hook_rot_q, hook_cos, hook_sin or hook_attn_scores do not fire, and its attention does "
            "not go through transformers' attention interface: rotated queries and keys cannot be had"
        )
        raise UnsupportedModelError(msg)
    for layer, resolved in _resolve_delegated(model, tokens, delegated):
        note(layer, resolved)
    _refuse_other_heads(found, int(model.cfg.n_heads))
    if not found:
        msg = "no layer of this model rotates queries and keys: dominant dimensions are not defined for it"
        raise UnsupportedModelError(msg)
    return RotaryModel(dict(sorted(found.items())), unscored)


def rotated_vectors(
    model: TransformerLensModel,
    rotary: RotaryLayer,
    record: Record,
    positions: Int[Tensor, "#batch pos"],
) -> tuple[Float[Tensor, "batch pos head d_head"], Float[Tensor, "batch pos kv_head d_head"]]:
    """Queries and keys after rotation, exactly as the layer uses them, from one record of it."""
    if "hook_rot_q" in record and "hook_rot_k" in record:
        return record["hook_rot_q"], record["hook_rot_k"]
    query, key = _before_rotation(record, rotary.d_head)
    phase = layer_phase(model, rotary, record, positions)
    return rotate(query, phase, rotary.layout), rotate(key, phase, rotary.layout)


def layer_phase(
    model: TransformerLensModel, rotary: RotaryLayer, record: Record, positions: Int[Tensor, "#batch pos"]
) -> Complex[Tensor, "#batch pos pair"]:
    """Phase of each position and pair, from the layer's own cos and sin."""
    if rotary.table == "embed_positions":
        sin, cos = _embedded(model, rotary.layer)[positions].float().chunk(2, dim=-1)
        return torch.complex(cos, sin)
    return _phase_of(record["hook_cos"], rotary.sense * record["hook_sin"], rotary.table)


def rebuilt_scores(
    rotary: RotaryLayer,
    rot_q: Float[Tensor, "batch query_pos head d_head"],
    rot_k: Float[Tensor, "batch key_pos kv_head d_head"],
) -> Float[Tensor, "batch head query_pos key_pos"]:
    """Attention scores before the mask, from rotated queries and keys: scaled, soft-capped, in float32."""
    scores = scaled_scores(rotary, rot_q, rot_k)
    return scores if rotary.soft_cap is None else soft_capped(scores, rotary.soft_cap)


def scaled_scores(
    rotary: RotaryLayer,
    rot_q: Float[Tensor, "batch query_pos head d_head"],
    rot_k: Float[Tensor, "batch key_pos kv_head d_head"],
) -> Float[Tensor, "batch head query_pos key_pos"]:
    """Attention scores before soft-cap and mask, `scale * q . k` in float32."""
    key = expand_key_heads(rot_k, rot_q.shape[2]).float()
    return einsum(rot_q.float(), key, "b query head d, b key head d -> b head query key") * rotary.scale


def soft_capped(scores: Float[Tensor, "*shape"], cap: float) -> Float[Tensor, "*shape"]:
    """`cap * tanh(scores / cap)`, as Gemma-2 does."""
    return cap * torch.tanh(scores / cap)


def masked_entries(rotary: RotaryLayer, scores: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Entries the model hides: scores not above `mask_limit`; a pattern of 0 where that is what is held."""
    return scores == 0 if rotary.records == "pattern" else scores <= mask_limit(scores)


def mask_limit(scores: Float[Tensor, "*shape"]) -> float:
    """The highest score that stands for a hidden pair, near the dtype's minimum or -inf.

    The minimum may have been added to a score, or (CodeGen) divided by the attention scale afterwards, hence the
    margin; in float16 even real scores could come within it, so that there the margin is small. Scores that are float32
    in a float16 model (OLMo-2) are masked with float16's minimum.
    """
    lowest = torch.finfo(scores.dtype).min / 1e3
    if scores.dtype == torch.float16 or not scores.numel() or not bool(scores.amin() <= lowest):
        return torch.finfo(torch.float16).min / 2
    return lowest


def score_error(
    rotary: RotaryLayer,
    rebuilt: Float[Tensor, "batch head query_pos key_pos"],
    held: Float[Tensor, "batch head query_pos key_pos"],
    hidden: Bool[Tensor, "batch #head query_pos key_pos"],
) -> float:
    """Largest discrepancy between rebuilt scores and what the model holds, relative to the largest of them."""
    if rotary.records == "pattern":
        rebuilt = rebuilt.masked_fill(hidden, -torch.inf).softmax(-1).nan_to_num()
    held = held.float()
    difference, size = ((x.masked_fill(hidden, 0)).abs().max() for x in (rebuilt - held, held))
    return float(difference / size.clamp(min=1e-3))


def tolerance(dtype: torch.dtype) -> float:
    """Largest relative error that rounding explains."""
    return TOLERANCE[dtype]


def _resolve_layer(model: TransformerLensModel, layer: int, record: Record) -> RotaryLayer | None:
    held = record[SCORES]
    query, key = _unrotated(record, held.shape[1])
    _refuse_non_finite(layer, query, key)
    if "hook_cos" not in record and _embedded(model, layer) is None:
        if "hook_rot_q" in record and torch.equal(record["hook_rot_q"].float(), query.float()):
            return None
        msg = f"layer {layer}: hook_cos and hook_sin do not fire, so the angles of its rotation cannot be had"
        raise UnsupportedModelError(msg)
    component = model.blocks[layer].attn.original_component
    source: Literal["hook", "rebuilt"] = "hook" if "hook_rot_q" in record else "rebuilt"
    is_pattern = bool((held >= 0).all()) and bool(((held.float().sum(-1) - 1).abs() < 0.05).all())  # noqa: PLR2004
    draft = RotaryLayer(
        layer=layer,
        source=source,
        layout="half",
        table="half",
        rotary_dim=0,
        d_head=query.shape[-1],
        n_heads=query.shape[2],
        scale=_attention_scale(component, query.shape[-1]),
        soft_cap=getattr(component, "attn_logit_softcapping", None),
        holds="pattern" if is_pattern else "scores",
        error=torch.inf,
    )
    candidates = [
        _try_layout(model, draft, layout, record, *vectors)
        for layout in LAYOUTS
        for vectors in _projected(component, query, key)
    ]
    best = min(candidates, key=lambda candidate: candidate.error)
    positions = torch.arange(query.shape[1], device=query.device)[None]
    phase = layer_phase(model, best, record, positions)[0]
    table = record.get("hook_cos", _embedded(model, layer))
    frequencies = proven_frequencies(model, layer, phase, best.d_head, table.dtype)
    if not best.error <= tolerance(held.dtype):
        tried = ", ".join(f"{candidate.layout} {candidate.error:.2g}" for candidate in candidates)
        msg = (
            f"layer {layer}: rotated queries and keys do not give the model's own attention scores "
            f"(relative error by pair layout: {tried}); this architecture is not understood, or an "
            "active hook edits its rotated queries or keys; nothing was scored"
        )
        raise UnsupportedModelError(msg)
    return replace(best, frequencies=frequencies)


def _resolve_delegated(
    model: TransformerLensModel, tokens: Int[Tensor, "1 pos"], layers: list[int]
) -> Iterator[tuple[int, RotaryLayer | None]]:
    """Layers whose attention the bridge leaves to Hugging Face, read twice: here, and with all positions moved."""
    if not layers:
        return
    here: dict[int, Record] = {}
    moved: dict[int, Record] = {}
    places = torch.arange(tokens.shape[1], device=tokens.device)[None]
    with torch.no_grad():
        plain = model(tokens)
        with reading_attention(model, layers, here.__setitem__):
            read = model(tokens, position_ids=places)
        with reading_attention(model, layers, moved.__setitem__):
            model(tokens, position_ids=places + MOVED)
    if not float((plain - read).abs().amax(-1).median() / plain.abs().max()) <= tolerance(plain.dtype):
        msg = "reading queries and keys through transformers' attention interface changes this model's output"
        raise UnsupportedModelError(msg)
    for layer in layers:
        if layer not in here or layer not in moved:
            msg = f"layer {layer}: its attention does not call the attention interface that its configuration names"
            raise UnsupportedModelError(msg)
        yield layer, _resolve_moved(model, layer, here[layer], moved[layer])


def _resolve_moved(model: TransformerLensModel, layer: int, here: Record, moved: Record) -> RotaryLayer | None:
    query, key = here["hook_rot_q"], here["hook_rot_k"]
    _refuse_non_finite(layer, query, key)
    rotates = max(distance(here[name], moved[name]) for name in ROTATED) > tolerance(query.dtype)
    if "hook_cos" not in here and rotates:
        msg = f"layer {layer}: its attention is not handed cos and sin, so the angles of its rotation cannot be had"
        raise UnsupportedModelError(msg)
    if "hook_cos" not in here:
        return None
    table = _table_of(here["hook_cos"], here["hook_sin"])
    phases = [_phase_of(record["hook_cos"], record["hook_sin"], table) for record in (here, moved)]
    # before NoPE is believed: its layers are handed a sound table too, and one that stands still would look like NoPE
    frequencies = proven_frequencies(model, layer, phases[0][0], query.shape[-1], here["hook_cos"].dtype)
    if not rotates:
        return None
    module = attention_module(model, layer)
    draft = RotaryLayer(
        layer=layer,
        source="interface",
        layout="half",
        table=table,
        rotary_dim=0,
        d_head=query.shape[-1],
        n_heads=query.shape[2],
        scale=_attention_scale(module, query.shape[-1]),
        soft_cap=getattr(module, "attn_logit_softcapping", None),
        holds="pattern",
        error=torch.inf,
    )
    layout, sense, error = min(turns(here, moved, phases[0], phases[1]), key=lambda found: found[2])
    hidden = masked_entries(draft, here[SCORES])
    score = score_error(draft, rebuilt_scores(draft, query, key), here[SCORES], hidden)
    if not max(error, score) <= tolerance(query.dtype):
        msg = (
            f"layer {layer}: moving all positions does not turn queries and keys by the model's own angles (relative "
            f"error {error:.2g}), or they miss its scores (by {score:.2g}); this architecture is not understood"
        )
        raise UnsupportedModelError(msg)
    return replace(
        draft,
        layout=layout,
        sense=sense,
        rotary_dim=2 * phases[0].shape[-1],
        error=max(error, score),
        frequencies=frequencies,
    )


def _refuse_other_heads(found: dict[int, RotaryLayer], n_heads: int) -> None:
    """Results have as many heads in every layer."""
    for layer, rotary in found.items():
        if rotary.n_heads != n_heads:
            msg = (
                f"layer {layer} has {rotary.n_heads} heads and the model's configuration {n_heads}: models whose "
                "layers have different numbers of heads cannot be scored"
            )
            raise UnsupportedModelError(msg)


def _try_layout(
    model: TransformerLensModel,
    draft: RotaryLayer,
    layout: Layout,
    record: Record,
    query: Float[Tensor, "batch pos head d_head"],
    key: Float[Tensor, "batch pos kv_head d_head"],
) -> RotaryLayer:
    """The layer under one pair layout, with the error that this makes in rotation and in scores."""
    table: Table = "embed_positions"
    if "hook_cos" in record:
        table = _table_of(record["hook_cos"], record["hook_sin"])
    trial = replace(draft, layout=layout, table=table)
    positions = torch.arange(query.shape[1], device=query.device)[None]
    phase = layer_phase(model, trial, record, positions)
    trial = replace(trial, rotary_dim=2 * phase.shape[-1])
    if trial.rotary_dim > trial.d_head:
        return trial
    rot_q, rot_k = rotate(query, phase, layout), rotate(key, phase, layout)
    error = 0.0
    if trial.source == "hook":
        fired = (record["hook_rot_q"].float(), record["hook_rot_k"].float())
        error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip((rot_q, rot_k), fired, strict=True))
        rot_q, rot_k = fired
    hidden = masked_entries(trial, record[SCORES])
    return replace(
        trial, error=max(error, score_error(trial, rebuilt_scores(trial, rot_q, rot_k), record[SCORES], hidden))
    )


def _unrotated(
    record: Record, n_heads: int
) -> tuple[Float[Tensor, "batch pos head d_head"], Float[Tensor, "batch pos kv_head d_head"]]:
    width = record["hook_q"].shape[-1] if record["hook_q"].ndim == 4 else record["hook_q"].shape[-1] // n_heads  # noqa: PLR2004
    return _before_rotation(record, width)


def _before_rotation(
    record: Record, d_head: int
) -> tuple[Float[Tensor, "batch pos head d_head"], Float[Tensor, "batch pos kv_head d_head"]]:
    """Queries and keys before rotation, after QK-norm where there is one, with position before head."""

    def find(normed: str, plain: str) -> Float[Tensor, "batch pos any_head d_head"]:
        plain_tensor = record[plain]
        if plain_tensor.ndim == 3:  # noqa: PLR2004
            plain_tensor = plain_tensor.unflatten(-1, (-1, d_head))
        if normed not in record:
            return plain_tensor
        tensor = record[normed]
        if tensor.ndim == 3:  # noqa: PLR2004  OLMo-2 normalises all heads at once, before splitting them
            return tensor.unflatten(-1, (-1, d_head))
        return tensor.transpose(1, 2)

    return find("hook_q_normed", "hook_q"), find("hook_k_normed", "hook_k")


def _projected(
    component: Any, query: Float[Tensor, "batch pos head d_head"], key: Float[Tensor, "batch pos kv_head d_head"]
) -> list[tuple[Tensor, Tensor]]:
    """What a layer may rotate, given what its hooks show: clipped (OLMo), keys with a multiplier (Falcon-H1).

    Whether `hook_k` shows keys with the multiplier or without depends on the version of TransformerLens.
    """
    clip = getattr(getattr(component, "config", None), "clip_qkv", None)
    if clip is not None:
        query, key = query.clamp(-clip, clip), key.clamp(-clip, clip)
    multiplier = getattr(component, "key_multiplier", None)
    return [(query, key)] if multiplier in {None, 1} else [(query, key), (query, key * multiplier)]


def _table_of(cos: Float[Tensor, "*lead width"], sin: Float[Tensor, "*lead width"]) -> Table:
    """How cos and sin repeat over channels: first half again, every one twice, or once per pair (GPT-OSS)."""
    half, rest = cos.shape[-1] // 2, cos.shape[-1] % 2
    tables = (cos, sin)
    if not rest and all(torch.equal(table[..., :half], table[..., half:]) for table in tables):
        return "half"
    if not rest and all(torch.equal(table[..., ::2], table[..., 1::2]) for table in tables):
        return "adjacent"
    return "single"


def _phase_of(
    cos: Float[Tensor, "#batch pos width"], sin: Float[Tensor, "#batch pos width"], table: Table
) -> Complex[Tensor, "#batch pos pair"]:
    pairs = cos.shape[-1] if table == "single" else cos.shape[-1] // 2
    step = 2 if table == "adjacent" else 1
    return torch.complex(cos[..., : pairs * step : step].float(), sin[..., : pairs * step : step].float())


def _embedded(model: TransformerLensModel, layer: int) -> Any:
    """GPT-J and CodeGen keep sin | cos of every position as a buffer of the attention module."""
    component = getattr(model.blocks[layer].attn, "original_component", None)
    return getattr(component, "embed_positions", None)


def _attention_scale(component: Any, d_head: int) -> float:
    scaling = getattr(component, "scaling", None)
    if isinstance(scaling, (int, float)):
        return float(scaling)
    divisor = getattr(component, "scale_attn", None)
    return 1 / float(divisor) if divisor is not None else d_head**-0.5


def _refuse_non_finite(layer: int, query: Tensor, key: Tensor) -> None:
    for name, tensor in (("queries", query), ("keys", key)):
        bad = ~torch.isfinite(tensor).all(dim=-1).all(dim=1).all(dim=0)
        if bad.any():
            heads = ", ".join(str(head) for head in bad.nonzero().flatten().tolist())
            msg = (
                f"layer {layer}: the {name} of head {heads} are not finite. A weight is NaN or infinite, or the model "
                "overflows in this precision: check the checkpoint, or load it in float32"
            )
            raise UnsupportedModelError(msg)
