"""CLEX (Chen et al., arXiv 2310.16450): frequencies from a learned differential equation, read from its checkpoints.

State z(t) = ln f(t), with t from 1 to `max_factor`:
`dz/dt = act((z + ln n(t)) W_up) W_down - 4 i / ((r - 2) alpha)`, `alpha = 2 t - 1`,
`n_i(t) = (10000 alpha ** (r / (r - 2))) ** (-2 i / r)`, z(1) = ln f. The base in n is 10000, whatever the model's is.
Solved by the 3/8 rule in steps of `time_dt`, as torchdiffeq's rk4 does; a run of n tokens takes t = ceil(n / Lt).
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from positional_heads.bridge.rope_scaling.method import Method
from positional_heads.bridge.rope_scaling.plain_rope import PlainRope, RopeTable
from positional_heads.core.arguments import checked

TENSORS = {
    "inv_freq": "model.clex_layer.inv_freq",
    "up": "model.clex_layer.proj_func.ode_up_proj",
    "down": "model.clex_layer.proj_func.ode_down_proj",
}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": torch.nn.functional.silu, "tanh": torch.tanh}
ODE_BASE = 10000.0


@dataclass(frozen=True)
class Clex(Method):
    """CLEX with the weights of a checkpoint; the equation is at the top of this file.

    Attributes:
        inv_freq: Frequencies at t = 1, in radians per token.
        up: W_up of the equation.
        down: W_down of the equation.
        max_factor: Largest t; runs of up to `max_factor * Lt` tokens.
        act: silu or tanh.
        time_dt: Step of the solver in t.
        log_scale: Multiply scores by ln n / ln Lt, which is below 1 in short runs.
    """

    inv_freq: Float[Tensor, " pair"]
    up: Float[Tensor, "pair hidden"]
    down: Float[Tensor, "hidden pair"]
    max_factor: int
    act: str = "silu"
    time_dt: float = 0.01
    log_scale: bool = False
    name: str = field(default="clex", init=False)

    def __post_init__(self) -> None:
        if self.act not in ACTIVATIONS:
            msg = f"act {self.act!r} is unknown: choose one of {', '.join(ACTIVATIONS)}"
            raise ValueError(msg)
        if self.max_factor < 1 or not 0 < self.time_dt <= 1:
            msg = f"max_factor {self.max_factor} must be at least 1, and time_dt {self.time_dt} above 0 and at most 1"
            raise ValueError(msg)

    @property
    def settings(self) -> dict[str, Any]:
        """The checkpoint's configuration."""
        return {
            "max_factor": self.max_factor,
            "act": self.act,
            "time_dt": self.time_dt,
            "log_scale": self.log_scale,
            "hidden": self.up.shape[1],
        }

    def table(self, rope: PlainRope, length: int) -> RopeTable:
        """Frequencies at t = ceil(length / Lt), the same at all positions of a run."""
        t = min(self.max_factor, math.ceil(length / rope.training_length))
        scale = math.log(max(length, 2)) / math.log(rope.training_length) if self.log_scale else 1.0
        return RopeTable(self.inv_freq if t <= 1 else self.solved[t - 1], score_factor=scale)

    def reach(self, training_length: int) -> int:
        """Longest run that the checkpoint was trained for, in tokens."""
        return self.max_factor * training_length

    @cached_property
    def solved(self) -> Float[Tensor, "t pair"]:
        """Frequencies at t = 1, 2, ..., max_factor, in float32."""
        z = self.inv_freq.float().log()
        states = [z]
        for whole in range(1, self.max_factor):
            steps = math.ceil(1 / self.time_dt - 1e-6)
            for step in range(steps):
                start = step * self.time_dt
                z = self._step(whole + start, min(self.time_dt, 1 - start), z)
            states.append(z)
        return torch.stack(states).exp()

    def slope(self, t: float, z: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        """dz/dt, the right-hand side of the equation."""
        width = 2 * len(z)
        double_index = torch.arange(0, width, 2, dtype=z.dtype)
        alpha = 2 * t - 1
        log_scaled = -double_index / width * (math.log(ODE_BASE) + width / (width - 2) * math.log(alpha))
        learned = ACTIVATIONS[self.act]((z + log_scaled) @ self.up.to(z)) @ self.down.to(z)
        return learned - 2 * double_index / ((width - 2) * alpha)

    def _step(self, t: float, dt: float, z: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
        """One step of the 3/8 rule."""
        first = self.slope(t, z)
        second = self.slope(t + dt / 3, z + dt * first / 3)
        third = self.slope(t + 2 * dt / 3, z + dt * (second - first / 3))
        fourth = self.slope(t + dt, z + dt * (first - second + third))
        return z + dt * (first + 3 * (second + third) + fourth) / 8


@checked
def load_clex(checkpoint: str | Path, *, log_scale: bool | None = None) -> Clex:
    """Read CLEX's tensors and configuration from a checkpoint folder; safetensors only, no code is run.

    Args:
        checkpoint: Folder with config.json and safetensors files.
        log_scale: Whether to scale scores; the configuration's choice when None.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If a tensor or setting is missing, or a tensor has another shape than the format prescribes.
    """
    folder = Path(checkpoint)
    config_file = folder / "config.json"
    files = sorted(folder.glob("*.safetensors"))
    if not config_file.is_file() or not files:
        msg = f"{folder}: no CLEX checkpoint; give a folder with config.json and safetensors files"
        raise FileNotFoundError(msg)
    config = json.loads(config_file.read_text(encoding="utf-8"))
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if (scaling.get("type") or scaling.get("rope_type")) != "clex":
        msg = f"{config_file}: rope_scaling is not of type 'clex' ({scaling.get('type')!r}): not a CLEX checkpoint"
        raise ValueError(msg)
    tensors = _tensors(files)
    missing = [name for key, name in TENSORS.items() if key not in tensors]
    if missing:
        msg = f"{folder}: the CLEX tensors {', '.join(missing)} are missing; give a complete checkpoint"
        raise ValueError(msg)
    _refuse_misshapen(tensors, float(scaling.get("param_factor", 1)))
    return Clex(
        tensors["inv_freq"].float(),
        tensors["up"].float(),
        tensors["down"].float(),
        max_factor=int(scaling.get("max_factor", 16)),
        act=str(scaling.get("act", "silu")),
        time_dt=float(scaling.get("time_dt", 0.01)),
        log_scale=bool(config.get("log_scale", False)) if log_scale is None else log_scale,
    )


def _tensors(files: list[Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as stored:
            names = set(stored.keys())
            tensors |= {key: stored.get_tensor(name) for key, name in TENSORS.items() if name in names}
    return tensors


def _refuse_misshapen(tensors: dict[str, Tensor], param_factor: float) -> None:
    n_pairs = tensors["inv_freq"].numel()
    hidden = round(2 * n_pairs * param_factor)
    expected = {"inv_freq": (n_pairs,), "up": (n_pairs, hidden), "down": (hidden, n_pairs)}
    for key, shape in expected.items():
        if tuple(tensors[key].shape) != shape:
            msg = (
                f"{TENSORS[key]} has shape {tuple(tensors[key].shape)}, the format prescribes {shape} for {n_pairs} "
                f"pairs and a param_factor of {param_factor:g}"
            )
            raise ValueError(msg)
