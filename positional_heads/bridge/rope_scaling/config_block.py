"""Write a method into config.json, and prove that `transformers` reads it back as what was applied.

Versions differ in what they read. Version 5 reads `rope_scaling` before its own `rope_parameters`, and then takes the
base from inside the block; version 4 reads the base beside the block. So a block has it in both places.

`max_position_embeddings` becomes the target length, by which programs limit a context, with two exceptions. Dynamic NTK
takes it for the training length in all versions, so it stays there. YaRN's is the factor times the training length,
where that is longer: versions 4.51 to 4.55 divide one by the other instead of reading the factor, later ones warn where
they differ. (Versions until 4.50 take it for YaRN's training length.) NTK and linear have no entry for the training
length, so `original_max_position_embeddings` stands beside their block: `transformers` does not read it there, but
whoever loads the checkpoint next, this library among them, sees that it is extended.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch

from positional_heads.bridge.frequency_check import ROUNDING
from positional_heads.bridge.model import TransformerLensModel, UnsupportedModelError
from positional_heads.bridge.rope_scaling.method import Method
from positional_heads.bridge.rope_scaling.plain_rope import PlainRope, RopeTable

WRITTEN = ("ntk", "linear", "yarn", "llama3", "dynamic")
"""Methods that a block can express, in every version of transformers since 4.45."""
BASES = {"gpt_neox": "rotary_emb_base"}
"""What families call the base in config.json, where that is not rope_theta."""
PLACES = ("text_config",)
"""Sections of a configuration that hold the text model's, where it has others beside it."""


def why_not_written(method: Method) -> str | None:
    """Why a method cannot be written into config.json; None if it can."""
    if method.rewrites_scores:
        return "needs code, not a config: it rewrites attention scores"
    if method.name == "longrope":
        return "versions 4 and 5 of transformers read its settings from different places"
    return None if method.name in WRITTEN else "needs code, not a config: no rope_scaling expresses it"


def config_block(method: Method, rope: PlainRope, target_length: int) -> dict[str, Any]:
    """The keys of config.json that make `transformers` rotate as a method does.

    Args:
        method: One that `why_not_written` has no objection to.
        rope: The rotation that the extended layers were trained with.
        target_length: Tokens to extend to.
    """
    trained, base = rope.training_length, rope.base
    settings: dict[str, Any] = {"rope_type": method.name, **method.settings}
    if method.name == "ntk":  # another base is all that it is
        longer = round(settings["factor"] * trained) / trained
        base, settings = base * longer ** (rope.rotary_dim / (rope.rotary_dim - 2)), {"rope_type": "default"}
    if method.name in {"yarn", "llama3"}:
        settings["original_max_position_embeddings"] = trained
    if "factor" in settings:
        settings["factor"] = float(settings["factor"])  # version 4 warns of whole numbers
    share = rope.built_in.get("partial_rotary_factor")
    unsaid = method.name not in {"dynamic", "yarn", "llama3"}
    return {
        "max_position_embeddings": longest_context(method, trained, target_length),
        **({"original_max_position_embeddings": trained} if unsaid else {}),
        BASES.get(rope.config.model_type, "rope_theta"): base,
        "rope_scaling": settings
        | {"rope_theta": base}
        | ({} if share in {None, 1} else {"partial_rotary_factor": share}),
    }


def longest_context(method: Method, trained: int, target_length: int) -> int:
    """What `max_position_embeddings` must be for a method; below the target length for dynamic NTK only.

    Args:
        method: The method.
        trained: Tokens that the model was trained on.
        target_length: Tokens to extend to.
    """
    if method.name == "dynamic":
        return trained
    if method.name == "yarn":
        return max(target_length, math.ceil(method.settings["factor"] * trained))
    return target_length


def in_its_place(model: TransformerLensModel, block: Mapping[str, Any]) -> dict[str, Any]:
    """A block as it stands in this model's config.json: in the section of its text model, where there is one."""
    for name in PLACES:
        if getattr(model.original_model.config, name, None) is not None:
            return {name: dict(block)}
    return dict(block)


def prove_block(
    model: TransformerLensModel, block: Mapping[str, Any], tables: Mapping[int, RopeTable], length: int
) -> str | None:
    """Build a model from a copy of the configuration with the block in it, and compare how it rotates.

    This is done in the configuration's present form and in that of version 4, which has no `rope_parameters`. The model
    has no weights; its rotary modules are made once more with values.

    Args:
        model: A TransformerBridge.
        block: The block, in its place.
        tables: What each layer must rotate by.
        length: Tokens of the run to compare in.

    Returns:
        Why `transformers` does not take the block for this family (Phi-3 has LongRoPE only); None if it does.

    Raises:
        UnsupportedModelError: If a layer would rotate otherwise, or its rotation cannot be found.
    """
    own = model.original_model.config
    for new_form in (True, False):
        raw = _patched(own.to_dict(), block, new_form=new_form)
        try:
            config = type(own).from_dict(raw)
        except Exception as error:  # noqa: BLE001  each family's own rules, in errors of many kinds
            return f"transformers refuses it for this family: {' '.join(str(error).split())}"
        _prove(config, tables, length, "5" if new_form else "4")
    return None


def _patched(stored: Mapping[str, Any], block: Mapping[str, Any], *, new_form: bool) -> dict[str, Any]:
    raw: dict[str, Any] = copy.deepcopy(dict(stored))
    for name in PLACES:
        if name in block:
            return raw | {name: _patched(raw[name], block[name], new_form=new_form)}
    if not new_form:
        before = raw.pop("rope_parameters", None) or {}
        if isinstance(before.get("sliding_attention"), Mapping):
            raw["rope_local_base_freq"] = before["sliding_attention"]["rope_theta"]
    return raw | copy.deepcopy(dict(block))


@torch.no_grad()
def _prove(config: Any, tables: Mapping[int, RopeTable], length: int, form: str) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    empty = [
        one for one in built.modules() if type(one).__name__.endswith("RotaryEmbedding") and hasattr(one, "config")
    ]
    modules = [type(one)(one.config) for one in empty if type(one.config) is type(text)]
    if not modules:  # nothing to compare
        msg = f"no rotary module was found in a {type(built).__name__}, so its rope_scaling cannot be checked"
        raise UnsupportedModelError(msg)
    for module in modules:
        for layer, table in tables.items():
            read = _table(module, layer, length)
            if not _same(read, table):
                msg = (
                    f"a config.json of transformers {form} with this rope_scaling would rotate layer {layer} by "
                    f"{_words(read)}, and what was tried by {_words(table)}: no block is given"
                )
                raise UnsupportedModelError(msg)


def _table(module: Any, layer: int, length: int) -> RopeTable:
    """What a rotary module rotates a layer by in a run of so many tokens."""
    prefix, named = "", {}
    if isinstance(module.rope_type, Mapping):
        named = {"layer_type": module.config.layer_types[layer]}
        prefix = f"{named['layer_type']}_"
    module.forward(torch.zeros(1), torch.tensor([[length - 1]]), **named)  # frequencies may follow the length
    scaling = getattr(module, f"{prefix}attention_scaling")
    return RopeTable(getattr(module, f"{prefix}inv_freq").float(), float(scaling))


def _same(one: RopeTable, other: RopeTable) -> bool:
    tolerance = ROUNDING[torch.float32]
    if one.inv_freq.shape != other.inv_freq.shape or abs(one.amplitude / other.amplitude - 1) > tolerance:
        return False
    difference = (one.inv_freq.double() - other.inv_freq.double()).abs()
    return bool((difference <= tolerance * other.inv_freq.double().abs()).all())


def _words(table: RopeTable) -> str:
    shown = ", ".join(f"{one:.4g}" for one in table.inv_freq[:4].tolist())
    return f"{len(table.inv_freq)} frequencies ({shown}, ...) and a factor of {table.amplitude:.4g}"
