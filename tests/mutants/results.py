"""Mistakes in results/ that a test must catch."""

from tests.mutants.mutant import Mutant

MUTANTS = (
    # Which heads are Positional Heads, and text that shows nothing
    Mutant(
        "results/scores.py",
        "return self.significant(alpha) & (self.rho > 0)",
        "return self.significant(alpha)",
        "results/test_scores -k by_significance",
    ),
    Mutant(
        "results/scores.py",
        "-float(self.excess[head])",
        "-float(self.rho[head])",
        "results/test_scores -k by_significance",
    ),
    Mutant("results/null_scores.py", "double().std(0)", "double().var(0)", "laws/test_nulls -k stated_error"),
    Mutant(
        "results/files.py", 'if "null" in content', 'if "run" in content', "laws/test_resolution -k earlier_version"
    ),
    Mutant("results/verdicts.py", "repeats < FEWEST_SHUFFLES", "repeats < 1", "results/test_verdicts -k little_power"),
    Mutant(
        "results/verdicts.py",
        "rising = significant & (rho > 0)",
        "rising = significant",
        "results/test_verdicts -k verdict_says",
    ),
    Mutant(
        "results/verdicts.py",
        '"Over single heads" if singles == scored',
        '"Over single heads" if singles',
        "studies/test_ablation -k top_heads_alone",
    ),
    # The control, and scores without curves
    Mutant(
        "results/scores.py",
        "return self.beats_null(alpha) & self.control",
        "return self.control",
        "results/test_scores -k beat_their_null_in_both",
    ),
    Mutant(
        "results/scores.py",
        "else control.without_curves()",
        "else control",
        "results/test_scores -k without_curves",
    ),
    Mutant("results/record.py", "named_tensors(inner).items()", "inner.items()", "scoring/test_control -k file_holds"),
    # Comparisons: paired or not, whose variance, and what is not shown to differ
    Mutant(
        "results/compare.py", "if paired:\n        resampled", "if True:\n        resampled", "results/test_compare"
    ),
    Mutant("results/compare.py", "* groups / (groups - 1), groups - 1)", ", groups - 1)", "results/test_compare"),
    Mutant("results/compare.py", "rho.double().var(0) / len(rho)", "rho.double().var(0)", "results/test_compare"),
    Mutant("results/compare.py", "if drawn[0] != drawn[1]:", "if False:", "results/test_compare -k another_order"),
    Mutant("results/compare.py", "value = sides[1] - sides[0]", "value = sides[0] - sides[1]", "results/test_compare"),
    Mutant(
        "results/compare.py",
        "difference.square().nanmean(-1).sqrt()",
        "difference.abs().nanmean(-1)",
        "results/test_pair_change -k both_have",
    ),
    Mutant(
        "results/pair_change.py",
        "(a.edges[1:] - a.edges[:-1]).double() * change",
        "1.0 * change",
        "results/test_pair_change -k altered",
    ),
    Mutant(
        "results/pair_change.py",
        "order[: len(order) // 2]",
        "order[len(order) // 2 :]",
        "results/test_pair_change -k altered",
    ),
    Mutant("results/comparison.py", "2 * stats.t.sf", "stats.t.sf", "results/test_compare"),
    Mutant(
        "results/comparison_verdict.py",
        "comparison.excess_changed[",
        "~comparison.changed[",
        "results/test_compare",
    ),
    Mutant(
        "results/compare.py",
        "torch.stack([a.stays(), b.stays()])",
        "torch.stack([a.beats_null(), b.beats_null()])",
        "results/test_compare -k what_stays",
    ),
    Mutant(
        "results/comparison_verdict.py",
        "elif None in texts[0]",
        "elif None not in texts[0]",
        "results/test_compare -k texts_are_named",
    ),
    Mutant(
        "results/scores.py",
        "lambda head: not stays[head]",
        "lambda head: stays[head]",
        "results/test_scores -k look_at",
    ),
    Mutant("results/tables.py", "value < LEAST_P", "value < 0", "results/test_tables -k printed_as_zero"),
    Mutant("results/ranked_heads.py", "len(beating & {*scores", "len({*scores", "studies/test_ablation -k what_ranks"),
    Mutant("results/differing.py", 'PRECISION_ONLY = {"pairs", ', "PRECISION_ONLY = {", "results/test_compare"),
    # Values that make no sense, names of methods, runs that were stopped
    Mutant("results/unfinished.py", "done, total = len(content", "total, done = len(content", "cli/test_cli -k ctrl_c"),
    Mutant("results/record.py", "return tables[key].copy()", "return tables[key]", "results/test_record -k changed"),
    Mutant("results/record.py", "if key not in tables:", "if True:", "results/test_record -k once"),
    Mutant(
        "results/profile.py",
        "self.edges.numpy()[first + 1] - 1",
        "self.edges.numpy()[first + 1]",
        "results/test_record -k row_per_head_pair",
    ),
    Mutant(
        "results/task.py",
        '{name: measures[name] for name in content["measures"]}',
        "measures",
        "results/test_record -k comes_back",
    ),
    Mutant("results/extrapolation.py", "width // 2", "width", "results/test_record -k running_means"),
    Mutant("results/files.py", "json.dumps(header).encode() + data", "data", "results/test_files -k header"),
    # Intervals, and units that share nothing
    Mutant("results/scores.py", "self.n_groups / (self.n_groups - 1)", "1", "results/test_scores -k students"),
    Mutant(
        "results/effects.py",
        "lowest - 1.0, 1.0 - lowest",
        "float(lowest), 1.0",
        "core/test_statistics -k their_bounds",
    ),
    Mutant("results/extrapolation.py", ">= FEWEST_FOR_INTERVAL else", ">= 1 else", "results/test_extrapolation"),
    # A study of some of the answers
    Mutant(
        "results/answered_sets.py",
        "values={name: values[:, chosen]",
        "values={name: values[:, : len(chosen)]",
        "studies/tasks/test_exam -k of_that_part",
    ),
    Mutant("results/selection.py", "if all(row", "if any(row", "studies/tasks/test_exam -k of_that_part"),
    # Controls and predictors of harm
    Mutant(
        "results/ablation_tables.py",
        '("top", control, "permuted")',
        '("top", "random", "permuted")',
        "studies/test_ablation -k any_layer",
    ),
    Mutant(
        "results/ablation_tables.py",
        "harm = -units.changes",
        "harm = units.changes",
        "studies/test_ablation -k predict",
    ),
    Mutant("results/ablation_tables.py", "if k in with_control", "if k", "results/test_ablation -k mean_over_sizes"),
    Mutant(
        "results/ablation.py",
        "matched == anywhere",
        "matched >= matched",
        "results/test_ablation -k mean_over_sizes",
    ),
    Mutant(
        "results/verdicts.py", '["high"] <= chance', '["low"] <= chance', "results/test_ablation -k impossible_only"
    ),
    Mutant(
        "results/verdicts.py", "2 * sizes.min() > scored", "sizes.min() < scored", "results/test_ablation -k no_nan"
    ),
    Mutant(
        "results/ablation.py",
        'settings.get("n_permuted", settings',
        'settings.get("n_random", settings',
        "studies/test_ablation -k permutations_are",
    ),
    # Damaged files, and heads that are stable by the first keys alone
    Mutant(
        "results/unfinished.py",
        "in {None, _checksum(line)}",
        "is not line",
        "results/test_files -k finished_part",
    ),
    Mutant(
        "results/files.py",
        "return os.path.lexists(file) and",
        "return file.exists() and",
        "results/test_files -k is_none_is",
    ),
    Mutant(
        "results/stability.py",
        "self.stays if stays and",
        "self.stays if not stays and",
        "results/test_compare -k first_keys_alone",
    ),
    # Files of other tools: whose channels, whose order, and nothing that runs
    Mutant(
        "results/formats/mha2mla.py",
        "torch.cat([single, single], -1)",
        "single.repeat_interleave(2, -1)",
        "results/formats/test_mha2mla -k channel_order",
    ),
    Mutant(
        "results/formats/mha2mla.py",
        "descending=True, stable=True",
        "descending=False, stable=True",
        "results/formats/test_mha2mla -k channel_order",
    ),
    Mutant(
        "results/formats/mha2mla.py",
        "profile.pairs.band_norm",
        "profile.pairs.query_norm",
        "results/formats/test_mha2mla -k channel_order",
    ),
    Mutant(
        "results/formats/mha2mla.py",
        "(a == a[0]).all() or",
        "(a == a[0]).all() and",
        "results/formats/test_mha2mla -k compared_as_a_whole",
    ),
    Mutant(
        "results/formats/triattention.py",
        '"q_mean_real", "q_mean_imag", "q_abs_mean"',
        '"q_mean_imag", "q_mean_real", "q_abs_mean"',
        "results/formats/test_triattention -k calibration",
    ),
    Mutant(
        "results/formats/triattention.py",
        "center * (1 - ROUNDING)",
        "center * 0",
        "results/formats/test_triattention -k no_statistics",
    ),
    Mutant(
        "results/formats/fasa.py",
        "agreement.transpose(1, 2).tolist()",
        "agreement.tolist()",
        "results/formats/test_fasa -k ranking",
    ),
    Mutant(
        "results/formats/fasa.py",
        'if layout == "half"',
        'if layout != "half"',
        "results/formats/test_fasa -k ranking",
    ),
    Mutant(
        "results/formats/duo_attention.py",
        "values.double().nan_to_num(1.0)",
        "values.double().nan_to_num(0.0)",
        "results/formats/test_duo_attention -k loader",
    ),
    Mutant(
        "results/formats/duo_attention.py",
        "flat.argsort(stable=True)",
        "flat.argsort(stable=True, descending=True)",
        "results/formats/test_duo_attention -k lowest",
    ),
    Mutant(
        "results/formats/kvpress.py",
        "(~streaming).int()",
        "streaming.int()",
        "results/formats/test_kvpress -k plain_json",
    ),
    Mutant(
        "results/formats/foreign_files.py",
        'map_location="cpu", weights_only=True',
        'map_location="cpu", weights_only=False',
        "results/formats/test_hostile_files -k is_run",
    ),
    Mutant(
        "results/formats/foreign_files.py",
        "if unpacked > file.stat().st_size",
        "if unpacked < file.stat().st_size // 2",
        "results/formats/test_hostile_files -k large",
    ),
    Mutant(
        "results/rotation.py",
        'layer.get("rotary_dim") != layer.get("d_head")',
        "False",
        "results/formats/test_mha2mla -k other_channels",
    ),
    # Head plans: who gets a window, what is kept, and what is compared with what
    Mutant("core/key_heads.py", '"amax"', '"amin"', "results/test_head_plan -k demanding"),
    Mutant(
        "core/key_heads.py",
        "nan_to_num(torch.inf).sort",
        "nan_to_num(0).sort",
        "results/test_head_plan -k without_a",
    ),
    Mutant(
        "core/key_heads.py",
        "values[layer, rng.sample(places",
        "values[0, rng.sample(places",
        "results/test_head_plan -k draws",
    ),
    Mutant("results/window_plan.py", "budget * n + 0.5", "budget * n", "results/test_head_plan -k demanding"),
    Mutant("results/head_plan.py", "self.window - 1", "self.window", "results/test_head_plan -k applied"),
    Mutant(
        "results/head_plan.py",
        "min(length, self.sinks + self.window)",
        "min(length, self.window)",
        "results/test_head_plan -k one_by_one",
    ),
    Mutant(
        "results/window_plan.py",
        "cache.windows == 0",
        "cache.windows >= 0",
        "results/test_head_plan",
    ),
    Mutant(
        "results/plan_tables.py",
        "permutation_p(-float(plan.mean()), -drawn.mean(-1))",
        "permutation_p(float(plan.mean()), drawn.mean(-1))",
        "results/test_plan_study -k plain_means",
    ),
    Mutant(
        "results/plan_tables.py",
        "for budget in budgets]).mean(0)",
        "for budget in budgets])[0]",
        "results/test_plan_study",
    ),
    Mutant(
        "results/plan_verdict.py",
        'row["p_chance"] >= as_bad',
        'row["p_chance"] >= 0',
        "results/test_plan_study -k planted_costs",
    ),
    Mutant(
        "results/plan_verdict.py",
        'over["low"].isna().any()',
        'over["low"].isna().any() and False',
        "results/test_plan_study -k without_an_interval",
    ),
    Mutant(
        "results/plan_verdict.py",
        '(contrasts["budget"] == budget) & (contrasts["reach"] == reach)',
        '(contrasts["budget"] == ALL_BUDGETS) & (contrasts["reach"] == reach)',
        "results/test_plan_study -k at_each_budget",
    ),
    Mutant("core/statistics.py", "(tried - place) *", "tried *", "results/test_manipulation -k holm"),
    Mutant(
        "results/manipulation_tables.py",
        "difference = own - control.mean(0)",
        "difference = own",
        "results/test_manipulation -k plain_means",
    ),
    Mutant(
        "results/manipulation_tables.py",
        "RANDOM_HEADS, PERMUTED)",
        "RANDOM_HEADS, RANDOM_HEADS)",
        "results/test_manipulation -k permuted",
    ),
    Mutant(
        "results/manipulation_verdict.py",
        'row["reach"] != INTERACTION',
        "True",
        "results/test_manipulation -k what_was_planted",
    ),
    Mutant(
        "results/plan_verdict.py",
        "if 1 / (1 + plans) >= ALPHA",
        "if 1 / (1 + plans) > ALPHA",
        "results/test_plan_study -k no_measure",
    ),
    Mutant(
        "bridge/key_cache.py",
        "range(first_sharing) if kinds[one] == kind",
        "range(first_sharing)",
        "studies/test_key_cache",
    ),
    Mutant(
        "core/key_heads.py",
        "holders.clamp(min=0)[:, None] * width",
        "torch.arange(len(key_heads))[:, None] * width",
        "studies/test_key_cache -k several",
    ),
    Mutant(
        "results/formats/kvpress.py",
        "streaming = streaming.windowed",
        "streaming = ~streaming.windowed",
        "results/formats/test_plans -k kvpress",
    ),
    # What a head is, and which measures are one thing
    Mutant(
        "results/profile_verdict.py",
        "if abs(pair[2]) >= SAME",
        "if pair[2] >= SAME",
        "results/test_profile_verdict -k whatever_the_sign",
    ),
    Mutant(
        "results/profile_verdict.py",
        "beyond = ordered[ordered.abs() > chance]",
        "beyond = ordered[ordered.abs() > 0]",
        "results/test_profile_verdict -k beyond_what_chance",
    ),
    Mutant(
        "results/profile_verdict.py",
        "norm.isf(ALPHA / (2 * len(others)))",
        "norm.isf(ALPHA / 2)",
        "results/test_profile_verdict -k beyond_what_chance",
    ),
    Mutant(
        "results/head_profile.py",
        "values = rule.sign * self",
        "values = -rule.sign * self",
        "results/test_profile_verdict -k show_it_most",
    ),
    Mutant(
        "results/profile_tables.py",
        """row.get("distant_mass") is not None for row""",
        """row.get("distant_mass") is None for row""",
        "cli/test_profile -k longer_than_the_window",
    ),
    Mutant("results/plan_verdict.py", 'row["high"] < 0', 'row["low"] < 0', "results/test_plan_study -k planted_costs"),
    # Pair plans: which pairs keep their rotation
    Mutant("results/pair_plan.py", "number * n // count", "number", "results/test_pair_plan -k frequencies"),
    Mutant(
        "results/pair_plan.py",
        "budget * exists.sum(-1).double() + 0.5",
        "budget * exists.sum(-1).double()",
        "results/test_pair_plan -k highest",
    ),
    Mutant(
        "results/pair_plan.py",
        "pairs.contribution.abs(), 0.0",
        "pairs.contribution, 0.0",
        "results/test_pair_plan -k contribution",
    ),
    Mutant(
        "results/pair_plan.py",
        "values.isnan().double()) > 0",
        "values.isnan().double()) < 0",
        "results/test_pair_plan -k missing",
    ),
    Mutant("results/pair_plan.py", '{"high": -place', '{"high": place', "results/test_pair_plan -k frequencies"),
)
