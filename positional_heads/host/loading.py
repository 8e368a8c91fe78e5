"""From a name to a model: the bundled one, a local folder, or a hub name, as a TransformerBridge."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

logger = logging.getLogger(__name__)


def load_model(
    name_or_path: str,
    *,
    name: str | None = None,
    weights: "Mapping[str, Tensor] | None" = None,
    device: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> "TransformerBridge":
    """Boot a model through TransformerLens, in evaluation mode.

    Args:
        name_or_path: A local folder in `transformers` format, or a hub name.
        name: What to call it in results; its own name when None.
        weights: A state dict to load into the model in place of its own weights.
        device: Where to, e.g. "cpu" or "cuda"; TransformerLens decides when None.
        dtype: Precision, e.g. "bfloat16"; float32 when None.
        trust_remote_code: Run code that the model ships. Off unless asked for.

    Raises:
        FileNotFoundError: If a path is given that does not exist.
        ValueError: If the dtype is unknown, or the model cannot be loaded.
    """
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    _refuse_missing_folder(name_or_path)
    kinds = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype is not None and dtype not in kinds:
        msg = f"dtype {dtype!r} is unknown: choose one of {', '.join(kinds)}"
        raise ValueError(msg)
    settings: dict[str, Any] = {"trust_remote_code": trust_remote_code} if trust_remote_code else {}
    try:
        overrides = rope_overrides(name_or_path, trust_remote_code=trust_remote_code)
        if overrides:
            settings["hf_config_overrides"] = overrides
        bridge = TransformerBridge.boot_transformers(
            name_or_path, device=device, dtype=kinds[dtype or "float32"], **settings
        )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        msg = f"the model {name_or_path!r} cannot be loaded: {reason}"
        raise ValueError(msg) from error
    if weights is not None:
        _replace_weights(bridge, weights)
    if name is not None:
        bridge.cfg.model_name = name
    return bridge.eval()


def rope_overrides(name_or_path: str, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """What must be changed in a checkpoint's configuration for `transformers` to rotate as its authors did.

    YaRN-Mistral was trained with beta_fast 128 and beta_slow 2, which its code has and its configuration leaves out:
    Hugging Face's defaults of 32 and 1 would be wrong. CLEX's rotation is not known to Hugging Face: it is loaded
    plain, to be extended with `extended_rope(model, "clex", checkpoint=...)`.

    Raises:
        ValueError: If the rotation is of a type that nothing here knows.
    """
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    given = dict(getattr(config, "rope_parameters", None) or {})
    kind = given.get("rope_type") or given.get("type") or "default"
    if any(isinstance(value, dict) for value in given.values()):
        return {}
    if kind == "yarn" and config.model_type == "mistral" and given.get("finetuned") and "beta_fast" not in given:
        logger.warning("%s: a YaRN-Mistral checkpoint, rotated with beta_fast 128 and beta_slow 2", name_or_path)
        return {"rope_parameters": {**given, "beta_fast": 128, "beta_slow": 2}}
    if kind == "clex":
        logger.warning(
            "%s: a CLEX checkpoint, loaded with plain RoPE; apply extended_rope(model, 'clex', checkpoint=...)",
            name_or_path,
        )
        return {"rope_parameters": {"rope_type": "default", "rope_theta": given.get("rope_theta", 10000.0)}}
    if kind not in {"default", *ROPE_INIT_FUNCTIONS}:
        msg = f"its rope type {kind!r} is not known to transformers ({', '.join(ROPE_INIT_FUNCTIONS)})"
        raise ValueError(msg)
    return {}


def _replace_weights(bridge: Any, weights: "Mapping[str, Tensor]") -> None:
    """Bridges wrap modules, so that their parameters go by the original names with a component in between."""
    own = {
        name.replace("_original_component.", ""): tensor for name, tensor in bridge.original_model.named_parameters()
    }
    added = {name for name in own.keys() - weights.keys() if not own[name].any()}  # biases of zero, which bridges add
    if own.keys() - added != weights.keys():
        msg = f"weights do not fit the model: {sorted((own.keys() - added) ^ weights.keys())[:3]} are on one side only"
        raise ValueError(msg)
    for name, tensor in weights.items():
        own[name].data.copy_(tensor)


def _refuse_missing_folder(name_or_path: str) -> None:
    path = Path(name_or_path)
    looks_local = path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1
    if looks_local and not path.is_dir():
        msg = f"{name_or_path}: no such model folder; give an existing folder, a hub name, or 'bundled'"
        raise FileNotFoundError(msg)
    if path.is_dir() and not (path / "config.json").exists():
        msg = f"{name_or_path}: no config.json in it; give a folder written by save_pretrained"
        raise FileNotFoundError(msg)
