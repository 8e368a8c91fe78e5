"""Models that are loaded already, as Hugging Face's or under a bridge; and the check that a bridge changes nothing.

A bridge is put around the caller's own model: the weights are shared, and its modules get wrappers. It must give the
logits that the model gave before.
"""

import copy
import logging
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from positional_heads.bridge.checkpoints import BOOTING, installing_refused, stand_in_tokenizer, tokenizer_of
from positional_heads.bridge.model import UnsupportedModelError, refuse_unsupported
from positional_heads.bridge.rotary_layer import TOLERANCE
from positional_heads.core.logs import error_reason

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

PROBE = 24
logger = logging.getLogger(__name__)


def is_loaded(model: Any) -> bool:
    """Whether this is a model rather than the name of one."""
    return isinstance(model, nn.Module) or hasattr(model, "original_model")


def wrapped_model(model: Any, tokenizer: Any = None) -> "TransformerBridge":
    """A bridge around a Hugging Face model that is loaded already, in evaluation mode; a bridge is checked only.

    Args:
        model: The model, which gets wrappers around its modules, and shares its weights with the bridge; PEFT's
            wrapper may be around it.
        tokenizer: Its tokenizer; when None, the one in its folder or the hub's cache, else the model takes token ids.

    Raises:
        TypeError: If it is another kind of model.
        ValueError: If it cannot be wrapped, or it is a bridge and a tokenizer is given.
        UnsupportedModelError: If its bridge does not compute what it does.
    """
    from transformer_lens.model_bridge import TransformerBridge

    if hasattr(model, "original_model") or hasattr(model, "cfg"):
        if tokenizer is not None:
            msg = "a bridge has its tokenizer: set bridge.tokenizer, and leave tokenizer= out"
            raise ValueError(msg)
        return _checked_bridge(model)
    own = _own_model(model)
    device, source = execution_device(own), str(own.name_or_path or type(own).__name__)
    found = tokenizer_of(source) if tokenizer is None else _as_it_is(tokenizer)
    own.eval()
    expected = probe_logits(own, device)
    try:
        with BOOTING, installing_refused(source):
            bridge = TransformerBridge.boot_transformers(
                source, hf_model=own, device=device, dtype=own.dtype, tokenizer=found or stand_in_tokenizer()
            )
    except Exception as error:
        msg = f"TransformerLens cannot wrap this {type(own).__name__}: {error_reason(error)}"
        raise ValueError(msg) from error
    if found is None:
        logger.warning("%s: no tokenizer given or found, so the model takes token ids and no text", source)
        bridge.tokenizer = None
    bridge.cfg.model_name = source + _adapter_names(model)
    bridge.cfg.device = device
    refuse_other_logits(bridge.eval(), expected)
    return bridge


def _as_it_is(tokenizer: Any) -> Any:
    """A tokenizer that TransformerLens does not load again: one that was made in memory has no folder."""
    if "name_or_path" in getattr(tokenizer, "init_kwargs", {"name_or_path": ""}):
        return tokenizer
    kept = copy.deepcopy(tokenizer)
    kept.init_kwargs |= {"name_or_path": "", "add_bos_token": True}
    return kept


def _checked_bridge(model: Any) -> Any:
    """A bridge as it is, once its layers have been resolved.

    Raises:
        UnsupportedModelError: If it is no TransformerBridge, or cannot be scored.
    """
    from positional_heads.bridge.resolve import resolve_layers

    refuse_unsupported(model)
    resolve_layers(model)
    return model


def _own_model(model: Any) -> Any:
    """Hugging Face's model itself, without PEFT's wrapper around it.

    Raises:
        TypeError: If this is another kind of model.
        ValueError: If its adapter is not in its layers, or a bridge is around it.
    """
    from transformers import PreTrainedModel

    own = model
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        if getattr(model.active_peft_config, "is_prompt_learning", False):
            msg = "an adapter that adds virtual tokens changes no layer: its heads are those of the base model"
            raise ValueError(msg)
        own = model.get_base_model()
    if not isinstance(own, PreTrainedModel):
        msg = (
            f"a {type(own).__name__} is neither a TransformerBridge nor a model of transformers: give one of these, a "
            "folder, or a hub name"
        )
        raise TypeError(msg)
    if any(type(module).__module__.startswith("transformer_lens") for module in own.modules()):
        msg = "this model is under a TransformerBridge already: give that bridge"
        raise ValueError(msg)
    return own


def execution_device(model: Any) -> str:
    """Where a model takes its tokens: accelerate moves offloaded embeddings there for as long as they compute."""
    embeddings = model.get_input_embeddings()
    hook = getattr(embeddings, "_hf_hook", None)
    for one in getattr(hook, "hooks", [hook]):
        place = getattr(one, "execution_device", None)
        if place is not None:
            return f"cuda:{place}" if isinstance(place, int) else str(place)
    return str(next(embeddings.parameters()).device)


def _adapter_names(model: Any) -> str:
    """What the name of a model says about the adapters that its layers compute beside their weights."""
    if not any(hasattr(module, "base_layer") for module in model.modules()):
        return ""
    names = model.active_adapters
    return f" with adapter {', '.join(names() if callable(names) else names)}"


@torch.no_grad()
def probe_logits(model: Any, device: str) -> Float[Tensor, "1 pos vocab"]:
    """Logits of a few tokens.

    Raises:
        ValueError: If the model cannot run.
    """
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    try:
        return model(input_ids=torch.arange(PROBE, device=device)[None] % vocabulary, use_cache=False).logits.cpu()
    except Exception as error:
        msg = f"its own forward pass fails: {error_reason(error)}"
        raise ValueError(msg) from error


@torch.no_grad()
def refuse_other_logits(bridge: Any, expected: Float[Tensor, "1 pos vocab"]) -> None:
    """Refuse a bridge that computes something else than its model did: bridges read some weights past their layers.

    Raises:
        UnsupportedModelError: If the logits differ by more than the rounding of their precision.
    """
    tokens = torch.arange(PROBE, device=bridge.cfg.device)[None] % int(bridge.cfg.d_vocab)
    found = bridge(tokens).cpu()
    error = float((found.float() - expected.float()).abs().max() / expected.float().abs().max())
    if not error <= TOLERANCE.get(expected.dtype, 0):
        msg = (
            f"TransformerLens' bridge does not compute what this model does: logits differ by {error:.2g} of the "
            "largest. It reads some weights past the layers that hold them; merge adapters (merge_and_unload), or "
            "load the weights unquantised"
        )
        raise UnsupportedModelError(msg)
