"""Provenance of a result: model, data and library versions."""

import hashlib
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from positional_heads.bridge.model import TransformerLensModel

LIBRARIES = ("positional-heads", "transformer-lens", "transformers", "torch")
SAMPLED_VALUES = 4096
ORIGIN = "positional_heads_origin"
"""Key of a configuration that says how its weights were stored before, and in which file."""


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a number, and of Python."""
    return {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}


def model_provenance(model: Any) -> dict[str, Any]:
    """Name, architecture, Hugging Face revision, precision, a fingerprint of the weights, and where they come from.

    `origin` is there for weights that were converted: how they were stored, in which file, and its sha256.
    """
    config = getattr(model.original_model, "config", None)
    origin = getattr(config, ORIGIN, None)
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
    }


def weights_fingerprint(model: TransformerLensModel) -> str:
    """A sha256 over name, shape and up to 4096 evenly spaced values of each parameter; fast on large models too."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.original_model.named_parameters()):
        step = max(1, parameter.numel() // SAMPLED_VALUES)
        digest.update(f"{name} {tuple(parameter.shape)} ".encode())
        with _loaded_parameter(model.original_model, name) as weight:
            digest.update(weight.detach().flatten()[::step].float().cpu().numpy().tobytes())
    return digest.hexdigest()


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
