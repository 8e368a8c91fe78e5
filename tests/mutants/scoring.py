"""Mistakes in scoring/ that a test must catch."""

from tests.mutants.mutant import Mutant

MUTANTS = (
    Mutant("scoring/counter.py", "*others[: extra - len(chosen)], ", "", "scoring/test_score -k pilot"),
    # D where one pair holds nearly all: the deviation, ties, saturation
    Mutant("scoring/settings.py", ">= FLOAT32", "> 0 * FLOAT32", "laws/test_resolution -k every_resolution"),
    Mutant(
        "scoring/settings.py",
        "replace(settings or ScoringSettings(), ",
        "replace(ScoringSettings(), ",
        "scoring/test_settings -k keyword",
    ),
    # Which entries count, and their correlation
    Mutant(
        "scoring/batches.py", "Row(row, batch.first + row,", "Row(row, row,", "scoring/test_score -k batches_change"
    ),
    Mutant("scoring/layer_sums.py", "null.sums.absorb(other", "null.sums.absorb(self", "scoring/test_shards -k add_up"),
    Mutant("scoring/settings.py", "plan.distances > FEW", "plan.distances < FEW", "laws/test_nulls -k stated_error"),
    # What tokens, texts and heads are given
    Mutant(
        "scoring/head_examples.py",
        "if len(sequences) > 1:",
        "if len(sequences) > 99:",
        "bridge/test_sequences -k one_sequence",
    ),
    # The keys that are kept of a text, and whose attention it is
    Mutant(
        "scoring/per_query.py",
        "pattern.masked_fill(hidden, -1).topk",
        "pattern.topk",
        "scoring/test_head_examples -k most_attention",
    ),
    Mutant(
        "scoring/per_query.py",
        "_visible(vectors, queries, keys), -torch.inf)",
        "_visible(vectors, queries, keys), 0)",
        "scoring/test_head_examples -k equal_the_models",
    ),
    Mutant(
        "scoring/profile_counter.py",
        "vectors.attention_factors * row.length",
        "row.length",
        "views/explorer/test_series -k one_token",
    ),
    # Frequencies are the configuration's
    Mutant(
        "scoring/layer_counter.py",
        "max(rows, key=lambda row: row.length)",
        "min(rows, key=lambda row: row.length)",
        "bridge/test_run_lengths -k extended_by",
    ),
    # Layers of every family, proven against the model's own scores
    Mutant(
        "scoring/result.py", ": values.shape[-1]] =", "-values.shape[-1] :] =", "bridge/test_families -k fewer_pairs"
    ),
    Mutant(
        "scoring/layer_counter.py",
        "pair_frequencies(phase).abs()",
        "pair_frequencies(phase)",
        "bridge/test_families -k backwards",
    ),
    # Values that make no sense, names of methods, runs that were stopped
    Mutant("scoring/checkpoint.py", "self.save(sums)\n            counted", "counted", "cli/test_cli -k ctrl_c"),
    # LongBench, the evaluation harness, Ray, shards
    Mutant(
        "scoring/ray_executor.py", "sum(min(int(", "max(min(int(", "scoring/test_ray_executor -k than_there_is_room"
    ),
    Mutant(
        "scoring/shards.py", "if all(torch.equal", "if any(True or torch.equal", "scoring/test_shards -k other_kernels"
    ),
    Mutant("scoring/sums.py", "self.done |= other.done", "self.done = other.done", "scoring/test_shards -k add_up"),
    Mutant("scoring/progress.py", "- self.finished\n", "\n", "studies/test_budget -k goes_by_cost"),
    Mutant("scoring/progress.py", "initial=begun", "initial=0", "studies/test_budget -k time_left"),
    # The control without the first keys
    Mutant(
        "scoring/settings.py",
        "0 < self.control_keys <= self",
        "0 < self.control_keys < self",
        "scoring/test_control -k sense",
    ),
    Mutant(
        "scoring/settings.py",
        "skip_keys=self.control_keys, control_keys=0",
        "skip_keys=self.control_keys, control_keys=0, seed=1",
        "scoring/test_control -k without_the_first",
    ),
    Mutant("scoring/settings.py", ", longest) >= 2", ", longest) >= 3", "scoring/test_control -k shortest"),
    Mutant(
        "scoring/sums.py",
        "(self.control, other.control)",
        "(self.control, self.control)",
        "scoring/test_control -k add_up",
    ),
    Mutant(
        "scoring/sums.py",
        "self.run, set(), control, profile)",
        "self.run, set(), {}, profile)",
        "scoring/test_control -k add_up",
    ),
    Mutant("scoring/layer_sums.py", "**settings | changed", "**settings", "scoring/test_control -k add_up"),
    Mutant(
        "scoring/result.py",
        '"skip_keys": settings["control_keys"], "control_keys": 0',
        '"control_keys": 0',
        "scoring/test_control -k without_the_first",
    ),
    # What a run will cost
    Mutant(
        "scoring/estimate.py",
        "product(settings.scored,",
        "product([settings],",
        "scoring/test_estimate -k second_score",
    ),
    Mutant(
        "scoring/estimate.py", "for one in settings.scored)", "for one in [settings])", "scoring/test_estimate -k bytes"
    ),
    Mutant(
        "scoring/estimate.py",
        "entries * REPLICATES / plan.step",
        "entries / plan.step",
        "scoring/test_estimate -k drawn",
    ),
    Mutant(
        "scoring/estimate.py", "settings.null_repeats * (entries", "1 * (entries", "scoring/test_estimate -k one_by_one"
    ),
    Mutant(
        "scoring/estimate.py",
        "Counter(size.windows).items()",
        "Counter([None] * size.layers).items()",
        "scoring/test_estimate -k one_by_one",
    ),
    Mutant("scoring/estimate.py", "windowed * masked", "windowed * causal", "scoring/test_estimate -k arithmetic"),
    Mutant("scoring/estimate.py", "others, batches - 1)", "others, batches)", "scoring/test_estimate -k pilot"),
    Mutant("scoring/estimate.py", "coarse * halves", "0 * halves", "scoring/test_estimate -k bytes"),
    Mutant(
        "scoring/estimate.py",
        "min(len(lengths), MOST_GROUPS) + replicates",
        "MOST_GROUPS + replicates",
        "scoring/test_estimate -k bytes",
    ),
    Mutant(
        "scoring/estimate.py",
        "work.attention / machine.attention",
        "work.attention / machine.linear",
        "scoring/test_estimate -k over_speed",
    ),
    Mutant(
        "bridge/model_size.py",
        'share if ".experts." in key else 1',
        '1 if ".experts." in key else 1',
        "bridge/test_model_size -k experts",
    ),
    Mutant(
        "bridge/model_size.py",
        "if id(weight) not in embeddings",
        "if id(weight)",
        "bridge/test_model_size -k published",
    ),
    Mutant("bridge/model_size.py", "if kind in WINDOWED and window", "if window", "bridge/test_model_size -k windows"),
    Mutant("cli/estimate.py", "if not all(int(", "if not any(1 + int(", "scoring/test_estimate -k refused_where"),
    Mutant("cli/estimate.py", "- 1) > CHANGED", "- 1) >= 0", "scoring/test_estimate -k command_line"),
    Mutant(
        "cli/text_cut.py",
        "return self._cut(reader)[: self.sequences]",
        "return self._cut(reader)",
        "scoring/test_estimate -k in_order",
    ),
    Mutant(
        "scoring/score.py", "        saved.remove()  # left", "        pass  # left", "scoring/test_shards -k finished"
    ),
    Mutant("scoring/progress.py", "self.finished < self._parts.keys()", "True", "studies/test_budget -k worth_it"),
    # Head profiles
    Mutant("scoring/profile_counter.py", "length - window - sinks", "length - window", "scoring/test_head_profile"),
    Mutant(
        "scoring/profile_counter.py", "found.by_distance[:, 1:2]", "found.free[:, 1:2]", "scoring/test_head_profile"
    ),
    Mutant("scoring/profile_counter.py", "self._plan.group(row.sequence)", "0", "scoring/test_head_profile -k groups"),
    Mutant("scoring/profile_result.py", "norms > MASSIVE *", "norms > 2 *", "scoring/test_head_profile -k massive"),
    Mutant("scoring/profile_result.py", "mass=mass / total", "mass=mass", "scoring/test_head_profile -k distance"),
    Mutant(
        "scoring/distance_counter.py",
        "score.sum(0) - score",
        "score.sum(0)",
        "scoring/test_distance_profile -k own_attention",
    ),
    Mutant(
        "scoring/turned_pairs.py",
        "(factors.to(frequency) - 1)",
        "factors.to(frequency)",
        "studies/test_distance_response -k exactly_1",
    ),
)
