"""Would the tests notice? One-token mistakes, each made in a copy of the library, each of which some test must catch.

`python -m tests.mutants` tries them all (half an hour), or those of the files that it is given, and exits with 1 if
one survives. Not a test itself.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Mutant(NamedTuple):
    """A mistake, and what should see it: the beginnings of test files' names, and behind -k which of their tests."""

    file: str
    right: str
    wrong: str
    tests: str


MUTANTS = (
    Mutant("statistics.py", "repeats < FEWEST_SHUFFLES", "repeats < 1", "test_statistics -k little_power"),
    Mutant(
        "statistics.py", "rising = significant & (rho > 0)", "rising = significant", "test_statistics -k verdict_says"
    ),
    Mutant(
        "host/contribution_hooks.py",
        "contributions.clone() if contributions.requires_grad else contributions",
        "contributions",
        "test_host_contribution_hooks -k gradient_of_a_contribution",
    ),
    Mutant("counting.py", "*others[: extra - len(chosen)], ", "", "test_host_scoring -k pilot"),
    # Pairs of channels and their contributions
    Mutant("rotary.py", '"half": "... (two pair)', '"half": "... (pair two)', "test_rotary"),
    Mutant("rotary.py", "new_phase / phase", "new_phase * phase", "test_rotary"),
    Mutant(
        "contributions.py", "(kv_head group) d_head", "(group kv_head) d_head", "test_contributions -k neighbouring"
    ),
    Mutant("dominance.py", 'two key_pos") / temperature', 'two key_pos")', "test_contributions -k fast_block"),
    Mutant("dominance.py", "start - plan.furthest)", "start - plan.furthest + 1)", "test_contributions -k tiles"),
    # D where one pair holds nearly all: the deviation, ties, saturation
    Mutant("contributions.py", "weights * (index - at)", "weights * index", "test_contributions -k dominant_dim"),
    Mutant("dominance.py", ".amax(1, keepdim=True)", ".amin(1, keepdim=True)", "test_contributions -k fast_block"),
    Mutant("dominance.py", "weights.sub_(largest)", "weights", "test_contributions -k fast_block"),
    Mutant("binning.py", "last.diff(dim=1) <= 1", "last.diff(dim=1) <= 2", "test_binning -k whole_cells"),
    Mutant("binning.py", "following, middle, value", "following, value, value", "test_binning -k no_ties"),
    Mutant("binning.py", "starts_run[:, 1:] &=", "starts_run[:, 1:] |=", "test_binning"),
    Mutant("binning.py", "held > 0, -1, below", "held > 1, -1, below", "test_binning -k search_finds"),
    Mutant("pilot.py", "right, found = (", "found, right = (", "test_correlation -k displacement"),
    Mutant("correlation.py", "moved = 2 * self", "moved = 0 * self", "test_correlation -k rounding"),
    Mutant("settings.py", ">= FLOAT32", "> 0 * FLOAT32", "test_resolution -k every_resolution"),
    Mutant("correlation.py", "double() / self.counted.sum()", "double() / self.counted.max()", "test_resolution"),
    # Kernels
    Mutant("kernels/native.cpp", "* SATURATED < largest", "< largest", "test_kernels -k native_sums_are"),
    Mutant("kernels/native.py", "if threads > 1:  # two", "if False:  # two", "test_kernels -k threads"),
    Mutant("kernels/native.py", "places, temperature, one_bin", "places, 1.0, one_bin", "test_kernels -k listed_pairs"),
    Mutant("kernels/compiled.py", "total * SATURATED < 1", "total < 1", "test_kernels -k saturated_pairs"),
    # Which pairs count, and their correlation
    Mutant("plan.py", "self.window - 1]", "self.window]", "test_correlation -k closed_form"),
    Mutant("plan.py", "key_pos >= self.skip_keys", "key_pos > self.skip_keys", "test_contributions -k tiles"),
    Mutant("plan.py", "(below + counts / 2)", "below", "test_correlation"),
    Mutant("plan.py", "sequence * self.n_groups // len", "0 * self.n_groups // len", "test_correlation -k resampling"),
    Mutant("correlation.py", "pairs.cumsum(-1) - pairs / 2", "pairs.cumsum(-1)", "test_correlation -k scipys"),
    Mutant("correlation.py", "distance - distance.mean()", "distance", "test_correlation -k curves"),
    Mutant("sampling.py", "start * step", "step", "test_sampling -k equally_likely"),
    Mutant(
        "counting.py", "rng.permutation(length - fixed)", "np.arange(length - fixed)", "test_nulls -k moved_vectors"
    ),
    Mutant("counting.py", "sequence = batch.first + row", "sequence = row", "test_host_scoring -k batches_change"),
    Mutant("score_sums.py", "*[shuffled] *", "*[plan] *", "test_site -k a_shard_is_as_large"),
    # Which heads are Positional Heads, and text that shows nothing
    Mutant("results.py", "(self.rho > 0)", "(self.rho < 2)", "test_results -k by_significance"),
    Mutant("results.py", "-float(self.excess[head])", "-float(self.rho[head])", "test_results -k by_significance"),
    Mutant("statistics.py", "2 * most >= len", "most >= len", "test_resolution -k repeated_token"),
    Mutant("statistics.py", "(1 + 1 / repeats)", "1", "test_statistics"),
    Mutant("statistics.py", "stats.t.sf", "stats.t.cdf", "test_statistics"),
    # Chunks are rotated as the whole run is
    Mutant(
        "host/prefill.py",
        "[tokens.shape[1]]):\n        for",
        "[tokens.shape[1] + size]):\n        for",
        "test_run_lengths -k hugging",
    ),
    Mutant(
        "host/extrapolation/passing.py", "lengths = self.pinned\n", "lengths = [99]\n", "test_run_lengths -k hugging"
    ),
    Mutant(
        "host/extrapolation/passing.py",
        "self.pinned[0] if self.pinned",
        "known if self.pinned",
        "test_run_lengths -k put_back",
    ),
    Mutant(
        "host/extrapolation/extension.py",
        "run_length), position), others",
        "length), position), others",
        "test_run_lengths -k whole_run_under",
    ),
    Mutant("host/prefill.py", ">= length or continues", ">= length or not continues", "test_run_lengths -k state"),
    Mutant(
        "host/prefill.py",
        "return kinds <= {DynamicLayer}",
        "return kinds >= {DynamicLayer}",
        "test_run_lengths -k whole_run_under",
    ),
    Mutant("host/prefill.py", "max(SHORTEST_CHUNK, min(", "min(SHORTEST_CHUNK, min(", "test_prefill -k agreed"),
    Mutant("host/capture.py", "first - (known - keys)", "first", "test_prefill"),
    Mutant("host/capture.py", "whole[:, done[0] : known] = part", "whole[:, -queries:] = part", "test_prefill"),
    # Every sequence is scored as if alone and first
    Mutant("host/run_lengths.py", "name) > module", "name) < module", "test_run_lengths -k checkpoints_own"),
    Mutant("host/run_lengths.py", "places.min()) == 0", "places.min()) > 0", "test_run_lengths -k references"),
    Mutant("host/run_lengths.py", "zip(tables, places", "zip(tables[::-1], places", "test_run_lengths -k padded"),
    Mutant(
        "host/extrapolation/passing.py",
        "self._mask.long().sum",
        "self._mask.long().argmax",
        "test_run_lengths -k extended_by",
    ),
    # One D in hooks, cache, examples and counts
    Mutant("host/vectors.py", "(by_head.device) ** 2", "(by_head.device) ** 1", "test_one_dimension -k hook_cache"),
    Mutant("host/vectors.py", "else squared[heads]", "else squared[:1]", "test_one_dimension -k each_head"),
    Mutant("host/vectors.py", "self.divided(contributions, heads)", "contributions", "test_one_dim -k hook_cache"),
    Mutant("host/vectors.py", "back >= nearest, added", "back <= nearest, added", "test_extension -k really_used"),
    Mutant("host/vectors.py", "max(plan.min_distance, nearest)", "plan.min_distance", "test_extension -k really_used"),
    Mutant("host/vectors.py", "phase[None, order], phase", "phase[None], phase", "test_nulls -k moved_vectors"),
    # Edits, in place and by return value
    Mutant("host/contribution_hooks.py", "- before", "- contributions.sum(-1)", "test_host_contrib -k in_place"),
    Mutant("host/contribution_hooks.py", "dim(dominant.clone())", "dim(dominant)", "test_host_contrib -k readout"),
    Mutant("host/contribution_hooks.py", "))]) * rotary.scale", "))])", "test_host_contrib -k remainder"),
    Mutant("host/contribution_hooks.py", "added / rotary.scale", "added", "test_one_dim -k hook_cache"),
    Mutant(
        "host/contribution_hooks.py",
        "registry.pop(name, None)",
        "registry.get(name)",
        "test_host_contrib -k given_back",
    ),
    Mutant("host/live_hooks.py", "hook_rot_k(key.clone())", "hook_rot_k(key)", "test_host_live -k in_place"),
    Mutant("host/live_hooks.py", "object.__delattr__, module", "object.__dir__, module", "test_host_live -k put_back"),
    # Keys come from the cache that the run is given
    Mutant(
        "host/extrapolation/passing.py", "held[:, :, :known]", "held[:, :, -known:]", "test_cached -k filled_before"
    ),
    Mutant("host/extrapolation/passing.py", "if not self.pinned", "if self.pinned", "test_cached -k cannot_give"),
    Mutant(
        "host/extrapolation/extension.py",
        '== "default":  # what',
        '!= "default":  # what',
        "test_cached -k counted_alike",
    ),
    # Ablations go by position and number, and show nothing that is masked
    Mutant("host/places.py", "number, -1).amax(-1", "number, -1).amin(-1", "test_host_ablation -k recomputed"),
    Mutant("host/places.py", "mask > mask_limit", "mask < mask_limit", "test_ablation_places -k caches"),
    Mutant("host/places.py", ".repeat_interleave(", ".repeat(", "test_ablation_places -k beam"),
    Mutant("tasks/examples.py", "(model, batch)", "(model, range(len(batch)))", "test_ablation_places -k its_own"),
    Mutant("host/ablation.py", "(~hidden, 0)", "(hidden, 0)", "test_ablation_places -k masked_key"),
    Mutant("host/ablation.py", "distance, 1)", "distance, -9)", "test_host_ablation -k impossible"),
    # What tokens, texts and heads are given
    Mutant("host/sequences.py", "dtype == torch.bool", "dtype == torch.uint8", "test_token_forms -k no_tokens"),
    Mutant("examples.py", "if len(found) > 1:", "if len(found) > 99:", "test_token_forms -k one_sequence"),
    Mutant("host/texts.py", "split_special_tokens=True", "split_special_tokens=False", "test_token_forms -k special"),
    Mutant("host/texts.py", "if bos and text", "if bos and not text", "test_token_forms -k second_start"),
    Mutant("host/texts.py", "text.removeprefix(BYTE_ORDER_MARK)", "text", "test_token_forms -k byte_order"),
    Mutant("heads.py", "head.layer < n_layers\n", "head.layer <= n_layers\n", "test_asked_heads"),
    # Frequencies are the configuration's
    Mutant(
        "counting.py",
        "spans[one][1] - spans[one][0]",
        "spans[one][0] - spans[one][1]",
        "test_run_lengths -k extended_by",
    ),
    Mutant("host/frequencies.py", "differs & ~still", "differs & still", "test_frequencies -k wrong_table"),
    Mutant("host/frequencies.py", "turning.diff() < 0", "turning.diff() < 1", "test_frequencies -k descend"),
    Mutant("host/frequencies.py", "/ should - 1", "/ factor - 1", "test_frequencies -k attention_factor"),
    Mutant("host/extrapolation/plain_rope.py", "(kinds[layer])", "(kinds[0])", "test_frequencies -k two_kinds"),
    Mutant("host/admission.py", 'endswith("inv_freq")', 'endswith("inv_freqs")', "test_frequencies -k cast"),
    # Loads, or says why not
    Mutant("host/loading.py", 'if "install" in words', 'if "uninstall" in words', "test_loading -k installs_nothing"),
    Mutant("host/configuration.py", 'kind == "su" or', 'kind == "us" or', "test_loading -k meant"),
    Mutant("host/configuration.py", "and not quantized", "and quantized", "test_loading -k meant"),
    Mutant("host/provenance.py", "if not getattr(holder", "if getattr(holder", "test_loading -k disk"),
    Mutant("host/admission.py", "parameter.is_meta and", "not parameter.is_meta and", "test_loading -k never_loaded"),
    # Layers of every family, proven against the model's own scores
    Mutant("host/interface.py", "for sense in (1, -1)", "for sense in (1, 1)", "test_families -k left_to"),
    Mutant("host/interface.py", "-query.shape[2] :", ": query.shape[2]", "test_families -k llama4"),
    Mutant("host/interface.py", "scores + mask[", "scores + 0 * mask[", "test_families -k chunked"),
    Mutant("host/interface.py", "callback(setattr, config", "callback(getattr, config", "test_families -k leaves"),
    Mutant("host/layers.py", "rotary.sense * record", "1 * record", "test_families -k nanochat"),
    Mutant("host/layers.py", "query.clamp(-clip, clip), key", "query, key", "test_families -k olmo"),
    Mutant("host/layers.py", "(query, key * multiplier)", "(query, key)", "test_families -k falcon_h1"),
    Mutant("host/layers.py", "* rotary.scale", "* 1.0", "test_host_layers"),
    Mutant("host/capture.py", "smallest <= limit, ~(largest", "largest <= limit, ~(largest", "test_host_capture"),
    Mutant("host/capture.py", "~((smallest == 0) & (largest == 0))", "(smallest > 0)", "test_host_capture"),
    Mutant("score_sums.py", ": values.shape[-1]] =", "-values.shape[-1] :] =", "test_families -k fewer_pairs"),
    Mutant("counting.py", "pair_frequencies(phase).abs()", "pair_frequencies(phase)", "test_families -k backwards"),
    # Values that make no sense, names of methods, runs that were stopped
    Mutant("arguments.py", "(value) and abs(value) < LARGEST", "(value)", "test_bad_values"),
    Mutant("host/extrapolation/choosing.py", "not least < most", "not least > 0", "test_method_names -k not_take"),
    Mutant("tasks/recall.py", "needle == pair", "needle is pair", "test_method_names -k far_that"),
    Mutant("checkpoints.py", "self.keep(sums, now=True)\n            done", "done", "test_cli -k ctrl_c"),
    Mutant("unfinished.py", "done, total = len(content", "total, done = len(content", "test_cli -k ctrl_c"),
    Mutant("result_files.py", "json.dumps(header).encode() + data", "data", "test_results -k header"),
    # Intervals, and units that share nothing
    Mutant("effects.py", "np.ones(units + 1)", "np.ones(units + 1) / 2", "test_effects -k clopper"),
    Mutant("effects.py", "for end in (high, low)", "for end in (low, high)", "test_effects -k bootstrap_t"),
    Mutant("effects.py", "units < FEWEST_UNITS", "units < 1", "test_effects -k too_few"),
    Mutant("results.py", "self.n_groups / (self.n_groups - 1)", "1", "test_results -k students"),
    Mutant("studies/ablation_results.py", "lowest - 1.0, 1.0 - lowest", "float(lowest), 1.0", "test_effects -k bounds"),
    Mutant("studies/extrapolation_results.py", ">= FEWEST_FOR_INTERVAL else", ">= 1 else", "test_link"),
    Mutant("tasks/perplexity.py", "number % units", "number", "test_tasks -k perplexity"),
    Mutant("tasks/haystack.py", "[first : first + size] = True", "[first] = True", "test_tasks -k held_out"),
    Mutant("tasks/recall.py", "not in answers:", "in answers or True:", "test_tasks -k held_out"),
    # LongBench, the evaluation harness, Ray, shards
    Mutant(
        "studies/ablation.py",
        '"sha256": _examples_hash(made), **made.settings',
        '**made.settings, "sha256": _examples_hash(made)',
        "test_longbench -k documents",
    ),
    Mutant("tasks/longbench.py", '.split("\\n"), start=1)', ".splitlines(), start=1)", "test_longbench -k lines_end"),
    Mutant(
        "tasks/longbench_metrics.py",
        'said.lstrip("\\n").split("\\n")\n    line',
        'said.split("\\n")\n    line',
        "test_longbench -k judge",
    ),
    Mutant("harness.py", "with _seeded(seed):\n        loaded", "if True:\n        loaded", "test_harness -k seed"),
    Mutant("harness.py", "[request.doc_id]", "[0]", "test_harness -k each_documents"),
    Mutant("ray_executor.py", "sum(min(int(", "max(min(int(", "test_ray -k no_room"),
    Mutant("shards.py", "if all(torch.equal", "if any(True or torch.equal", "test_shards -k other_kernels"),
    Mutant("score_sums.py", "self.done |= other.done", "self.done = other.done", "test_shards -k add_up"),
)


def failing(tests: list[str], mutant: Mutant | None = None) -> list[str]:
    """Names of the tests that fail, or of the first of them, in a copy of the library with a mistake or without.

    Args:
        tests: Arguments of pytest.
        mutant: The mistake.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("positional_heads", "tests", "docs"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, copy)
        if mutant is not None:
            file = copy / "positional_heads" / mutant.file
            source = file.read_text()
            if source.count(mutant.right) != 1:
                raise ValueError(f"{mutant.file} does not hold {mutant.right!r} once: renew the mutant")
            file.write_text(source.replace(mutant.right, mutant.wrong))
        first = ["-x"] if mutant else []
        command = [sys.executable, "-m", "pytest", *first, "-q", "-rfE", "-p", "no:cacheprovider", *tests]
        ended = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
        said = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        if ended.returncode != bool(said):  # 1 where tests fail, 0 where none does, another where none could be run
            raise RuntimeError(f"{' '.join(tests)}: could not be run\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
        return [line.split(" ", 1)[1].split(" - ")[0] for line in said]


def main() -> None:
    """Try every mutant, or those of the files that are named; tests that catch one must pass without it."""
    caught: set[str] = set()
    surviving = 0
    for mutant in (one for one in MUTANTS if len(sys.argv) == 1 or one.file in sys.argv[1:]):
        names, _, chosen = mutant.tests.partition(" -k ")
        files = [f"tests/{path.name}" for name in names.split() for path in (ROOT / "tests").glob(f"{name}*.py")]
        if not files:
            raise ValueError(f"{mutant.file}: no test file is called {names}")
        found = failing([*files, *(["-k", chosen] if chosen else [])], mutant)
        caught.update(found)
        surviving += not found
        print("caught  " if found else "SURVIVES", mutant.file, mutant.right.splitlines()[0], flush=True)  # noqa: T201
    anyway = failing(sorted(caught)) if caught else []
    print(f"{surviving} survive; fail without a mistake: {' '.join(anyway) or 'none'}")  # noqa: T201
    sys.exit(1 if surviving or anyway else 0)


if __name__ == "__main__":
    main()
