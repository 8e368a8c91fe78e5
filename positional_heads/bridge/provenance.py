"""Provenance of a result: model, data and library versions."""

import hashlib
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from positional_heads.bridge.active_edits import model_edits
from positional_heads.bridge.model import TransformerLensModel

LIBRARIES = ("positional-heads", "transformer-lens", "transformers", "torch")
SAMPLED_VALUES = 4096
ORIGIN = "positional_heads_origin"
"""Key of a configuration that says how its weights were stored before, and in which file."""
WRAPPED = "_original_component."
"""What a bridge adds to the names of parameters."""


_installed = cache(version)
"""Read once: a study asks for each of its parts."""


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a number, and of Python."""
    return {name: _installed(name) for name in LIBRARIES} | {"python": platform.python_version()}


def model_provenance(model: Any) -> dict[str, Any]:
    """Name, architecture, Hugging Face revision, precision, a fingerprint of the weights, and where they come from.

    `origin` is there for weights that were converted: how they were stored, in which file, and its sha256; of quantised
    weights the method is there, and its configuration if they were quantised while loading; of an adapter the folder.
    `edits` is there while something else than an extension changes the model's runs, see `model_edits`.
    """
    own = model.original_model
    config = getattr(own, "config", None)
    origin = getattr(config, ORIGIN, None)
    quantized, adapter = quantization_method(own), getattr(own, "adapter_folder", None)
    while_loading = getattr(own, "quantized_while_loading", None)
    return {
        "name": str(model.cfg.model_name),
        "architecture": str(getattr(model.cfg, "architecture", None) or type(model.original_model).__name__),
        "revision": getattr(config, "_commit_hash", None),
        "weights": weights_fingerprint(model),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "context": int(model.cfg.n_ctx),
        "layers": int(model.cfg.n_layers),
        "heads": int(model.cfg.n_heads),
        "compatibility_mode": bool(getattr(model, "compatibility_mode", False)),
        **({} if origin is None else {"origin": dict(origin)}),
        **({} if quantized is None else {"quantization": quantized}),
        **({} if while_loading is None else {"quantization_config": while_loading}),
        **({} if adapter is None else {"adapter": adapter}),
        **({"edits": edits} if (edits := model_edits(model)) else {}),
    }


def quantization_method(own: Any) -> str | None:
    """How the weights of Hugging Face's model are quantised; None if they are not."""
    found = getattr(getattr(own, "config", None), "quantization_config", None)
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return None if method is None else str(getattr(method, "value", method))


def weights_fingerprint(model: TransformerLensModel) -> str:
    """A sha256 over name, shape and up to 4096 evenly spaced values of each parameter; fast on large models too.

    Quantised tensors and adapters enter by what they hold: codes, scales, and factors.
    """
    own, digest = model.original_model, hashlib.sha256()
    for name in sorted(_stored_tensors(own)):
        with _loaded_parameter(own, name) as weight:
            for part, values in _parts(name, weight.detach()):
                step = max(1, values.numel() // SAMPLED_VALUES)
                sample = values.flatten()[::step]
                sample = sample.float() if sample.is_floating_point() else sample
                digest.update(f"{part} {tuple(values.shape)} ".encode())
                digest.update(sample.cpu().numpy().tobytes())
    for name, module in own.named_modules():
        if isinstance(factors := getattr(module, "scaling", None), dict):  # of PEFT's layers
            digest.update(f"{name} {sorted(factors.items())} {module.active_adapters}".encode())
            digest.update(b"disabled" if getattr(module, "disable_adapters", False) else b"")
    return digest.hexdigest()


def _stored_tensors(own: Any) -> set[str]:
    """Names of parameters, and of the buffers in which some quantisers keep weights.

    Tied embeddings are one parameter, and two on disk: one name is left out, as in memory.
    """
    names = {name for name, _ in own.named_parameters()}
    tied = getattr(own, "all_tied_weights_keys", None) or {}
    names -= {name for name in names if own.get_parameter(name).is_meta and name.replace(WRAPPED, "") in tied}
    if quantization_method(own) is not None:
        names |= {name for name, _ in own.named_buffers() if not name.endswith("inv_freq")}  # which follow the length
    return names


def _parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors that a tensor is stored in: itself, or those of a quantised one."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    for part in sorted(tensor.__tensor_flatten__()[0]):
        yield from _parts(f"{name}.{part}", getattr(tensor, part))


@contextmanager
def _loaded_parameter(module: torch.nn.Module, name: str) -> Iterator[Tensor]:
    """A parameter with its values, read from disk for the block where `device_map` offloaded it."""
    owner, _, own_name = name.rpartition(".")
    holder = module.get_submodule(owner)
    if not getattr(holder, own_name).is_meta:
        yield getattr(holder, own_name)
        return
    from accelerate.utils import align_module_device  # type: ignore[import-untyped]  # which offloaded it

    with align_module_device(holder):
        yield getattr(holder, own_name)


def data_hash(sequences: list[tuple[Tensor, Tensor | None]]) -> str:
    """A sha256 over token ids and attention masks."""
    digest = hashlib.sha256()
    for tokens, mask in sequences:
        real = torch.ones_like(tokens) if mask is None else mask
        digest.update(tokens.long().cpu().numpy().tobytes() + real.long().cpu().numpy().tobytes())
    return digest.hexdigest()
