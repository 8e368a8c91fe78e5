"""Checkpoints of the bundled model in training, one byte per weight.

Each row of a matrix is stored as integers from -127 to 127 and a scale, which keeps weights to half a step at a quarter
of the size. The finished model is included in full precision.
"""

from pathlib import Path

import torch
from jaxtyping import Float, Int8
from safetensors.torch import load_file, save_file
from torch import Tensor

_SCALE = ".scale"


def quantised(
    weight: Float[Tensor, "row column"],
) -> tuple[Int8[Tensor, "row column"], Float[Tensor, "row 1"]]:
    """A matrix as integers, and the scale of each row."""
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return (weight / scale).round().to(torch.int8), scale


def save_checkpoint(weights: dict[str, Tensor], file: Path) -> None:
    """Write a state dict with its matrices quantised."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if tensor.ndim == 2:  # noqa: PLR2004
            tensors[name], tensors[name + _SCALE] = quantised(tensor)
        else:
            tensors[name] = tensor.clone()  # safetensors refuses tensors that share memory
    save_file(tensors, file)


def load_checkpoint(file: Path) -> dict[str, Tensor]:
    """Read what `save_checkpoint` wrote, as a state dict of floats."""
    tensors = load_file(file)
    tensors.pop("step", None)  # in the included files
    return {
        name: tensor.float() * tensors[name + _SCALE] if name + _SCALE in tensors else tensor
        for name, tensor in tensors.items()
        if not name.endswith(_SCALE)
    }


def untrained_weights(seed: int = 0) -> dict[str, Tensor]:
    """The random weights that training with this seed begins with."""
    from transformers import LlamaForCausalLM

    from positional_heads.zoo.architecture import bundled_config

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(LlamaForCausalLM(bundled_config()).state_dict())
