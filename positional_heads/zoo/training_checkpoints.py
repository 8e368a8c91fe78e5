"""What was the bundled model like while it was trained? A few checkpoints, one byte per weight.

Each row of a matrix is kept as integers from -127 to 127 and a scale, good to half a step: enough to study what emerges
when, at a quarter of the size. The finished model itself ships in full precision.
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
    """A matrix as integers, with the scale of each row."""
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return (weight / scale).round().to(torch.int8), scale


def pack_checkpoint(full: Path, packed: Path) -> None:
    """Write a training checkpoint with its matrices quantised."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(full).items():
        if tensor.ndim == 2:  # noqa: PLR2004
            tensors[name], tensors[name + _SCALE] = quantised(tensor)
        else:
            tensors[name] = tensor
    save_file(tensors, packed)


def unpack_checkpoint(packed: Path) -> dict[str, Tensor]:
    """Read a packed checkpoint as a state dict of floats."""
    tensors = load_file(packed)
    tensors.pop("step", None)
    return {
        name: tensor.float() * tensors[name + _SCALE] if name + _SCALE in tensors else tensor
        for name, tensor in tensors.items()
        if not name.endswith(_SCALE)
    }


def untrained_weights(seed: int = 0) -> dict[str, Tensor]:
    """The random weights that training with this seed begins with: the second null, after shuffled positions."""
    from transformers import LlamaForCausalLM

    from positional_heads.zoo.architecture import bundled_config

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(LlamaForCausalLM(bundled_config()).state_dict())
