"""Would the tests notice? One-token mistakes, each made in a copy of the library, each of which some test must catch.

`python -m tests.mutants` runs them all (half an hour), or those of the files that it is given, and exits with 1 if one
survives. Not a test itself.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Mutant(NamedTuple):
    """A mistake, and the test files that should see it."""

    file: str
    right: str
    wrong: str
    tests: str


MUTANTS = (
    Mutant("contributions.py", "pos (kv_head group) d_head", "pos (group kv_head) d_head", "test_contributions"),
    Mutant("rotary.py", '"half": "... (two pair)', '"half": "... (pair two)', "test_rotary test_contributions"),
    Mutant("rotary.py", "new_phase / phase", "new_phase * phase", "test_rotary"),
    Mutant(
        "contributions.py", "torch.softmax(contributions / temperature", "torch.softmax(contributions", "test_contr"
    ),
    Mutant("dominance.py", "/ temperature", "/ 1.0", "test_contributions"),
    Mutant("dominance.py", "start - plan.furthest)", "start - plan.furthest + 1)", "test_contributions"),
    Mutant("dominance.py", ".amax(1, keepdim=True)", ".amin(1, keepdim=True)", "test_contributions"),
    Mutant("plan.py", "self.window - 1]", "self.window]", "test_correlation test_contributions"),
    Mutant("plan.py", "key_pos >= self.skip_keys", "key_pos > self.skip_keys", "test_contributions"),
    Mutant("correlation.py", "pairs.cumsum(-1) - pairs / 2", "pairs.cumsum(-1)", "test_correlation"),
    Mutant("plan.py", "(below + counts / 2)", "below", "test_correlation"),
    Mutant("plan.py", "sequence * self.n_groups // len", "0 * self.n_groups // len", "test_correlation"),
    Mutant("binning.py", "starts_run[:, 1:] &=", "starts_run[:, 1:] |=", "test_binning"),
    Mutant("binning.py", "held > 0, -1, below", "held > 1, -1, below", "test_binning"),
    Mutant("statistics.py", "(1 + 1 / repeats)", "1", "test_statistics"),
    Mutant("statistics.py", "stats.t.sf", "stats.t.cdf", "test_statistics"),
    Mutant("result_files.py", "json.dumps(header).encode() + data", "data", "test_results"),
    Mutant("host/layers.py", "* rotary.scale", "* 1.0", "test_host_layers"),
    Mutant("host/layers.py", "return tensor.transpose(1, 2)", "return tensor", "test_host_layers"),
    Mutant("host/layers.py", "[..., :half], table[..., half:]", "[..., :half], table[..., :half]", "test_host_layers"),
    Mutant("host/capture.py", "window if window < longest else None", "window", "test_host_capture"),
    Mutant(
        "host/capture.py", "(distance >= 0) & (distance <", "(distance > 0) & (distance <", "test_host_cache test_head"
    ),
    Mutant("host/contribution_hooks.py", "contributions * rotary.scale", "contributions", "test_host_contribution"),
    Mutant("host/contribution_hooks.py", "(edited - contributions)", "(contributions - edited)", "test_host_contrib"),
    Mutant(
        "host/contribution_hooks.py", "_hook_registry.pop(name, None)", "_hook_registry.get(name)", "test_host_contr"
    ),
    Mutant("host/live_hooks.py", "object.__delattr__, module", "object.__dir__, module", "test_host_live"),
    Mutant(
        "layer_planes.py",
        "phase[:, order], phase, rotary.layout)\n        rot_k",
        "phase, phase, rotary.layout)\n        rot_k",
        "test_nulls",
    ),
    Mutant("counting.py", "fixed + rng.permutation(length - fixed)", "np.arange(fixed, length)", "test_nulls"),
    Mutant("counting.py", "sequence = batch.first + row", "sequence = row", "test_shards test_host_scoring"),
    Mutant("correlation.py", "distance - distance.mean()", "distance", "test_correlation"),
    Mutant("sampling.py", "start * step", "step", "test_sampling"),
    Mutant("sampling.py", "pairs_at[distances]).long()", "pairs_at[distances] / 2).long()", "test_sampling"),
    Mutant("score_sums.py", "self.done |= other.done", "self.done = other.done", "test_shards"),
    Mutant("score_sums.py", "(plan, *[shuffled] * repeats)", "(plan, *[plan] * repeats)", "test_shards test_site"),
    Mutant("kernels/native.py", "if threads > 1:  # two", "if False:  # two", "test_kernels"),
    Mutant("kernels/native.py", "places, temperature, one_bin", "places, 1.0, one_bin", "test_kernels"),
    Mutant("host/capture.py", "smallest <= limit, ~(largest", "largest <= limit, ~(largest", "test_host_capture"),
    Mutant("host/capture.py", "~(largest <= limit)", "~(smallest <= limit)", "test_host_capture"),
    Mutant("host/capture.py", "~((smallest == 0) & (largest == 0))", "(smallest > 0)", "test_host_capture"),
    Mutant("host/capture.py", "first - (known - keys)", "first", "test_prefill"),
    Mutant("host/capture.py", "done[0] + rows", "rows", "test_prefill"),
    Mutant("host/capture.py", "whole[:, done[0] : known] = part", "whole[:, -queries:] = part", "test_prefill"),
    Mutant("host/layers.py", "(rebuilt - held, held)", "(held - held, held)", "test_host_layers test_host_capture"),
    Mutant(
        "host/layers.py", "scores.amin() <= lowest", "scores.amax() <= lowest", "test_host_layers test_host_capture"
    ),
    Mutant("host/prefill.py", "max(SHORTEST_CHUNK, min(", "min(SHORTEST_CHUNK, min(", "test_prefill"),
    Mutant("cli_io.py", 'as error:\n        msg = f"{option}', 'as error:\n        msg = f"{text}', "test_cli"),
)


def survives(mutant: Mutant) -> bool:
    """Whether all of its tests pass with the mistake in place."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("positional_heads", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, copy)
        file = copy / "positional_heads" / mutant.file
        source = file.read_text()
        if source.count(mutant.right) < 1:
            raise ValueError(f"{mutant.file} no longer holds {mutant.right!r}: renew the mutant")
        file.write_text(source.replace(mutant.right, mutant.wrong, 1))
        tests = [str(path) for name in mutant.tests.split() for path in (copy / "tests").glob(f"{name}*.py")]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        return subprocess.run(command, cwd=copy, capture_output=True, check=False).returncode == 0


def main() -> None:
    """Try every mutant, or those of the files that are named."""
    surviving = 0
    for mutant in (one for one in MUTANTS if len(sys.argv) == 1 or one.file in sys.argv[1:]):
        alive = survives(mutant)
        surviving += alive
        print("SURVIVES" if alive else "caught  ", mutant.file, mutant.right.splitlines()[0], flush=True)  # noqa: T201
    sys.exit(1 if surviving else 0)


if __name__ == "__main__":
    main()
