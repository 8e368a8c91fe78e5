"""What `positional-heads score --estimate` prints: time and memory of a run, from the configuration alone."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import typer

from positional_heads.cli.common import PLACEMENTS
from positional_heads.cli.wording import say

if TYPE_CHECKING:
    from positional_heads.bridge.model_size import ModelSize
    from positional_heads.scoring.estimate import Estimate
    from positional_heads.scoring.machine import Machine
    from positional_heads.scoring.settings import ScoringSettings

SAMPLED, FEWER, SHARDS = 65536, 5, 8
"""Pairs, shuffles and shards of the runs that the asked one is compared with."""
CHANGED = 0.05
"""Share of time or memory by which a change must matter to be told."""
UNITS = ((86400 * 2, 86400, "days"), (3600 * 2, 3600, "hours"), (120, 60, "minutes"), (0, 1, "seconds"))


def print_estimate(
    model: str,
    cut: Any,
    settings: dict[str, Any],
    *,
    shards: int,
    batch_size: int | None,
    device: str | None,
    dtype: str | None,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Print the estimate.

    Args:
        model: As for `load_model`.
        cut: Cuts the texts into sequences, given something with the model's tokenizer and context.
        settings: Settings of the score.
        shards: Into how many shards the run is divided.
        batch_size: Sequences per forward pass.
        device: Where it would run.
        dtype: Precision of the model.
        trust_remote_code: Run code that comes with the model.
        as_json: Print numbers for programs.
    """
    import torch

    from positional_heads.bridge.model_size import model_size
    from positional_heads.scoring.estimate import estimated
    from positional_heads.scoring.layer_counter import nothing_counts
    from positional_heads.scoring.settings import ScoringSettings
    from positional_heads.zoo.bundled import load_configuration

    _refuse_device(device)
    config, tokenizer = load_configuration(model, trust_remote_code=trust_remote_code)
    size = model_size(config, model)
    stand_in = SimpleNamespace(tokenizer=tokenizer, cfg=SimpleNamespace(n_ctx=size.context))
    lengths = [len(piece) for piece in cut(stand_in)]
    asked = ScoringSettings(**settings)
    if not all(int(asked.plan(tuple(lengths), window).all_entry_counts.sum()) for window in {*size.windows}):
        raise ValueError(nothing_counts(max(lengths)))
    asked.refuse_short(max(lengths))
    precision = getattr(torch, dtype or "float32")

    def of(changed: "ScoringSettings", machine: "Machine", parts: int = shards) -> "Estimate":
        return estimated(size, lengths, changed, machine, shards=parts, batch_size=batch_size, dtype=precision)

    if (device or "").startswith("cuda"):
        none = "" if torch.cuda.is_available() else ", and none is here"
        say(f"{device}: no GPU is measured{none}; figures of an H100")
    here, gpu = _machines(size, lengths, asked, device)
    chosen = of(asked, here)
    others = {f"--pairs {SAMPLED}": of(replace(asked, pairs=SAMPLED), here)}
    if asked.null_repeats > FEWER:
        others[f"--null-repeats {FEWER}"] = of(replace(asked, null_repeats=FEWER), here)
    if asked.null_repeats:
        others["--null-repeats 0"] = of(replace(asked, null_repeats=0), here)
    if asked.control_keys:
        others["--control-keys 0"] = of(replace(asked, control_keys=0), here)
    if shards == 1 and len(lengths) >= SHARDS:
        others[f"each of {SHARDS} shards"] = of(asked, here, SHARDS)
    if gpu is not None:
        others[gpu.name] = of(asked, gpu)
    if as_json:
        found = {name: _numbers(one) for name, one in {"asked": chosen, **others}.items()}
        text = {"sequences": len(lengths), "tokens": sum(lengths)}
        typer.echo(json.dumps({"size": asdict(size), **text, "machine": asdict(here), "estimates": found}, indent=1))
        return
    typer.echo(_told(size, lengths, chosen, here, others))


def _machines(
    size: "ModelSize", lengths: list[int], settings: "ScoringSettings", device: str | None
) -> tuple["Machine", "Machine | None"]:
    """The machine of the run, and a GPU to compare it with if that is none."""
    from positional_heads.core.kernels.choosing import choose_kernel
    from positional_heads.core.kernels.eager import EagerKernel
    from positional_heads.scoring.counter import entry_cost
    from positional_heads.scoring.machine import H100, measured_machine

    if (device or "cpu").startswith("cuda"):
        return H100, None
    settled = settings.by_length(max(lengths))
    terms = size.head_count * size.pairs * entry_cost(settled, settled.plan(tuple(lengths), None))
    kernel = choose_kernel("cpu", terms) if settings.dtype == _float32() else EagerKernel()
    return measured_machine(size, kernel, settings.dtype), H100


def _float32() -> Any:
    import torch

    return torch.float32


def _numbers(estimate: "Estimate") -> dict[str, float]:
    return {"seconds": estimate.seconds, "bytes": estimate.bytes} | asdict(estimate)


def _told(
    size: "ModelSize", lengths: list[int], chosen: "Estimate", machine: "Machine", others: dict[str, "Estimate"]
) -> str:
    """The estimate in words and two tables."""
    times = {
        "the model's own run": chosen.forward,
        "query-key pairs": chosen.own,
        "shuffles": chosen.null,
        "everything else": chosen.rest,
    }
    kept = {
        "weights": chosen.weights,
        "activations, queries and keys": chosen.run,
        "sums": chosen.sums,
        "look-up tables": chosen.tables,
    }
    lines = [
        f"{size.name}: {size.parameters:,} parameters, {size.layers} layers of {size.heads} heads and {size.pairs} "
        "rotary pairs",
        f"{len(lengths)} sequences of at most {max(lengths)} tokens, {sum(lengths):,} tokens",
        f"would take about {_time(chosen.seconds)} and {_size(chosen.bytes)} ({machine.name}; loading not included)",
        *(f"  {name:<30}{_time(value):>14}{value / chosen.seconds:>6.0%}" for name, value in times.items()),
        *(f"  {name:<30}{_size(value):>14}" for name, value in kept.items()),
    ]
    if machine.measured:
        lines.append("speeds were measured just now: if this machine is busy, the time is guessed too high")
    changed = {name: one for name, one in others.items() if _differs(one, chosen)}
    lines += ["instead:"] if changed else []
    lines += [f"  {name:<30}{_time(one.seconds):>14}{_size(one.bytes):>12}" for name, one in changed.items()]
    return "\n".join(lines)


def _differs(one: "Estimate", chosen: "Estimate") -> bool:
    """Whether time or memory is another by more than the error of a guess between two runs."""
    return any(abs(new / old - 1) > CHANGED for new, old in ((one.seconds, chosen.seconds), (one.bytes, chosen.bytes)))


def _refuse_device(device: str | None) -> None:
    """Refuse a device that PyTorch does not know."""
    import torch

    if device is None or device in PLACEMENTS:
        return
    try:
        torch.device(device)
    except RuntimeError as error:
        msg = f"device {device!r} is unknown: give cpu, cuda, cuda:1, mps, or {', '.join(PLACEMENTS)}"
        raise ValueError(msg) from error


def _time(seconds: float) -> str:
    _, unit, name = next(one for one in UNITS if seconds >= one[0])
    return f"{seconds / unit:.2g} {name}" if seconds / unit < 10 else f"{seconds / unit:.0f} {name}"  # noqa: PLR2004


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"  # noqa: PLR2004
