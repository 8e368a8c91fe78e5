"""Predicted against measured time and memory: `python -m benchmarks.estimate`, three minutes on one core.

Times are CPU times of one thread, as others may use the machine. `--fit` measures the overheads that `FITTED` in
positional_heads/scoring/estimate.py holds, and prints them; the models of the table are not among those of the fit.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import positional_heads as ph
from benchmarks.models import bridged_llama, llama_config, random_tokens
from benchmarks.timing import markdown_table, setting, write_results
from positional_heads.bridge.model_size import ModelSize, model_size
from positional_heads.core.kernels.choosing import named_kernel
from positional_heads.scoring.estimate import Estimate, Overhead, estimated
from positional_heads.scoring.machine import Machine, measured_machine

KEYS = {"num_key_value_heads": 3, "intermediate_size": 1536}
SMOL = (30, 9, 64)
"""The shape of SmolLM2-135M, without its vocabulary."""


LEAST, MOST = 0.9, 3.0
"""Bounds of what a run's own work may cost beside its work at the machine's speeds: runs of the fit are short, and what
they spend elsewhere could be taken for it."""


class Case(NamedTuple):
    """A run: layers, heads and width of a head, other fields of the configuration, sequences, tokens, and settings."""

    shape: tuple[int, int, int]
    changed: dict[str, Any]
    sequences: int
    length: int
    settings: dict[str, Any]

    @property
    def told(self) -> str:
        """In words."""
        layers, heads, d_head = self.shape
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items()) or "exact, no null"
        return f"{layers} layers, {heads} heads x {d_head}: {self.sequences} x {self.length} tokens, {settings}"


FIT = (
    Case((2, 4, 64), {}, 2, 512, {}),
    Case((4, 8, 64), {}, 1, 1024, {}),
    Case((4, 8, 64), {}, 2, 1024, {"pairs": 65536}),
    Case((4, 8, 64), {}, 4, 512, {"null_repeats": 5}),
    Case((8, 4, 32), {}, 8, 256, {"null_repeats": 20}),
    Case((2, 16, 64), {}, 1, 2048, {"null_repeats": 10}),
    Case((12, 4, 64), {}, 16, 128, {}),
    Case((12, 12, 64), {}, 1, 512, {"pairs": 16384, "null_repeats": 20}),
    Case((2, 8, 64), {}, 1, 3072, {}),
)
CHECK = (
    Case(SMOL, KEYS, 1, 1024, {}),
    Case(SMOL, KEYS, 1, 1024, {"null_repeats": 20}),
    Case(SMOL, KEYS, 1, 1024, {"pairs": 65536}),
    Case(SMOL, KEYS, 4, 512, {"null_repeats": 20}),
    Case((6, 12, 64), {}, 3, 768, {"null_repeats": 10}),
    Case((3, 8, 128), {}, 1, 1536, {"null_repeats": 5}),
    Case((4, 16, 32), {}, 16, 256, {"pairs": 8192}),
    Case((2, 8, 64), {}, 1, 4096, {"null_repeats": 20}),
)


def predicted(case: Case, machines: dict[Any, Machine], overhead: Overhead | None = None) -> Estimate:
    """What the model says; the machine is measured once for each width."""
    size = sized(case)
    key = (size.d_model, size.d_mlp, size.pairs)
    if key not in machines:
        machines[key] = measured_machine(size, named_kernel("native"), clock=time.process_time)
    chosen = {} if overhead is None else {"overhead": overhead}
    settings = ph.ScoringSettings(**case.settings)
    return estimated(size, [case.length] * case.sequences, settings, machines[key], **chosen)


def sized(case: Case) -> ModelSize:
    """The size of a case's model."""
    return model_size(llama_config(*case.shape, **case.changed), "random")


def seconds(case: Case, repeats: int = 3) -> float:
    """CPU seconds of one run, the median of some."""
    model, tokens = bridged_llama(llama_config(*case.shape, **case.changed)), random_tokens(case.sequences, case.length)
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        ph.score_heads(model, tokens, **case.settings)
        taken.append(time.process_time() - started)
    return float(np.median(taken))


def mebibytes(number: int) -> float:
    """MiB at the peak of a case of the table, in a process of its own, above those before its model is made."""
    command = [sys.executable, "-m", "benchmarks.estimate", "--memory", str(number)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure_memory(case: Case) -> None:
    """The child of `mebibytes`."""
    ph.score_heads(bridged_llama(llama_config(1, 1, 64)), random_tokens(1, 64), null_repeats=2)  # loads what it needs
    before = resident("VmRSS")
    model = bridged_llama(llama_config(*case.shape, **case.changed))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    ph.score_heads(model, random_tokens(case.sequences, case.length), **case.settings)
    print(json.dumps((resident("VmHWM") - before) / 1024))


def resident(name: str) -> float:
    """KiB of memory of this process, now (VmRSS) or at the peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def fitted() -> Overhead:
    """The overheads that explain the runs of `FIT` best, with equal weight for each run's relative error."""
    from scipy.optimize import lsq_linear

    machines: dict[Any, Machine] = {}
    none = Overhead(0.0, 0.0, 0.0)
    names = [field.name for field in fields(Overhead)]
    rows, times = [], []
    for case in FIT:
        taken = seconds(case, 2)
        parts = [predicted(case, machines, replace(none, **{name: 1.0})).seconds for name in names]
        rows.append([part / taken for part in parts])
        times.append(taken)
        print(f"{case.told}: {taken:.2f} s")
    least, most = [LEAST] * 3 + [0.0] * 3, [MOST] * 3 + [np.inf] * 3
    found = lsq_linear(np.array(rows), np.ones(len(rows)), (least, most)).x
    return Overhead(*(float(f"{value:.3g}") for value in found))


def main() -> None:
    """Fit, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true", help="measure the overheads and print them")
    parser.add_argument("--memory", type=int, help="measure the memory of one case and print it")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.memory is not None:
        measure_memory(CHECK[given.memory])
        return
    ph.score_heads(bridged_llama(llama_config(1, 8, 64)), random_tokens(1, 1024), null_repeats=2)  # builds the kernel
    if given.fit:
        print(fitted())
        return
    machines: dict[Any, Machine] = {}
    rows, numbers = [], []
    for number, case in enumerate(CHECK):
        guess, taken, used = predicted(case, machines), seconds(case), mebibytes(number)
        parts = [getattr(guess, name) for name in ("forward", "own", "null", "rest")]
        row = {"case": case.told, "predicted": guess.seconds, "measured": taken, "parts": parts}
        numbers.append(row | {"MiB predicted": guess.bytes / 2**20, "MiB measured": used})
        cells = [*(f"{value:.2f}" for value in (guess.seconds, taken)), f"{guess.seconds / taken - 1:+.0%}"]
        cells += [*(f"{value:.0f}" for value in (guess.bytes / 2**20, used)), f"{guess.bytes / 2**20 / used - 1:+.0%}"]
        rows.append([case.told, *cells])
    told = ", ".join(f"{name} {value}" for name, value in setting().items())
    header = ["run", "seconds predicted", "measured", "error", "MiB predicted", "measured", "error"]
    text = (
        "# Predicted and measured cost of a run\n\nRandom Llamas that the overheads were not fitted to; CPU seconds of "
        f"one thread, median of 3 runs, and peak memory of another process. {told}.\n\n{markdown_table(header, rows)}"
    )
    write_results("estimate", text, {"setting": setting(), "rows": numbers})


if __name__ == "__main__":
    main()
