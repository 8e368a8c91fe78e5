"""Mistakes in core/ that a test must catch."""

from tests.mutants.mutant import Mutant

MUTANTS = (
    # Sets share layers with their neighbours
    Mutant("core/set_order.py", "(*heads, LAST)", "heads", "core/test_set_order"),
    Mutant("core/set_order.py", "{*first} ^ {*second}", "{*first} | {*second}", "core/test_set_order"),
    # Pairs of channels and their contributions
    Mutant("core/rotary.py", '"half": "... (two pair)', '"half": "... (pair two)', "core/test_rotary"),
    Mutant("core/bands.py", "phase.conj() / phase", "phase / phase", "core/test_rotary -k moving"),
    Mutant(
        "core/bands.py",
        "tril(first - start - band.nearest)",
        "tril(first - start - band.nearest - 1)",
        "bridge/rope_scaling/test_plain_extensions -k softmax_in_float64",
    ),
    Mutant(
        "core/bands.py",
        "max(0, first - band.furthest)",
        "max(0, first + count - band.furthest)",
        "bridge/rope_scaling/test_plain_extensions -k softmax_in_float64",
    ),
    Mutant(
        "core/bands.py",
        "triu(first - start - band.furthest)",
        "triu(first - start - band.furthest + 1)",
        "bridge/rope_scaling/test_plain_extensions -k softmax_in_float64",
    ),
    Mutant(
        "core/bands.py",
        "mask & own[..., keys]",
        "mask & own[..., : keys.stop - keys.start]",
        "bridge/rope_scaling/test_plain_extensions -k softmax_in_float64",
    ),
    Mutant("core/bands.py", "x if order is None else", "x if True else", "core/test_rotary -k moving"),
    Mutant("core/bands.py", "(kv_head group) pos pair", "(group kv_head) pos pair", "core/test_rotary -k moving"),
    Mutant(
        "core/contributions.py",
        "(kv_head group) d_head",
        "(group kv_head) d_head",
        "core/test_contributions -k neighbouring",
    ),
    Mutant(
        "core/kernels/tiled.py", 'two key_pos") / temperature', 'two key_pos")', "core/test_contributions -k fast_block"
    ),
    Mutant(
        "core/kernels/tiled.py",
        "start - plan.furthest)",
        "start - plan.furthest + 1)",
        "core/test_contributions -k tiles",
    ),
    # D where one pair holds nearly all: the deviation, ties, saturation
    Mutant(
        "core/contributions.py", "weights * (index - at)", "weights * index", "core/test_contributions -k dominant_dim"
    ),
    Mutant(
        "core/kernels/tiled.py",
        ".amax(1, keepdim=True)",
        ".amin(1, keepdim=True)",
        "core/test_contributions -k fast_block",
    ),
    Mutant("core/kernels/tiled.py", "weights.sub_(largest)", "weights", "core/test_contributions -k fast_block"),
    Mutant("core/binning.py", "last.diff(dim=1) <= 1", "last.diff(dim=1) <= 2", "core/test_binning -k whole_cells"),
    Mutant("core/binning.py", "following, middle, value", "following, value, value", "core/test_binning -k no_ties"),
    Mutant("core/binning.py", "starts_run[:, 1:] &=", "starts_run[:, 1:] |=", "core/test_binning"),
    Mutant("core/binning.py", "first < last, -1, first", "first + 1 < last, -1, first", "core/test_binning -k search"),
    Mutant("core/binning.py", "positions] + lowest", "positions]", "core/test_binning -k counting"),
    Mutant("core/pilot.py", "for row in exact_bin", "for row in counted_bin", "core/test_pilot -k displacement"),
    Mutant("core/pilot.py", "limits.gather(1, guess) <", "limits.gather(1, guess) <=", "core/test_pilot -k edge"),
    Mutant("core/kernels/exact.cpp", "ODD(low, high)) * scale", "ODD(low, low)) * scale", "core/test_exact"),
    Mutant("core/kernels/exact.cpp", "pairs - pair; pad", "pairs - pair + 1; pad", "core/test_exact"),
    Mutant("core/kernels/exact.py", "products[:, n_pairs:]", "products[:, :n_pairs]", "core/test_exact"),
    Mutant("core/correlation.py", "moved = 2 * self", "moved = 0 * self", "core/test_correlation -k rounding"),
    Mutant(
        "core/correlation.py",
        "double() / self.distance_counts.sum()",
        "double() / self.distance_counts.max()",
        "laws/test_resolution",
    ),
    # Kernels
    Mutant("core/kernels/native.cpp", "* SATURATED < largest", "< largest", "core/test_kernels -k native_sums_are"),
    Mutant(
        "core/kernels/native.py", "split = threads > 1 and", "split = threads < 1 and", "core/test_kernels -k threads"
    ),
    Mutant(
        "core/kernels/native.py",
        "positions, temperature, one_bin",
        "positions, 1.0, one_bin",
        "core/test_kernels -k listed_",
    ),
    Mutant("core/kernels/compiled.py", "total * SATURATED < 1", "total < 1", "core/test_kernels -k saturated_entries"),
    Mutant("core/kernels/fused_block.py", "(pair - at)", "pair", "core/test_fused -k interpreter"),
    Mutant(
        "core/kernels/fused_block.py", "(distance <= furthest)", "(distance < furthest)", "core/test_fused -k interpr"
    ),
    Mutant("core/kernels/fused_block.py", "< d\n", "<= d\n", "core/test_fused -k interpreter"),
    Mutant("core/kernels/fused.py", "(rows >> 16)", "(rows >> 15)", "core/test_fused -k interpreter"),
    Mutant(
        "core/kernels/fused.py",
        "(programs.cumsum(0) - programs)",
        "programs.cumsum(0)",
        "core/test_fused -k interpreter",
    ),
    # Which pairs count, and their correlation
    Mutant("core/plan.py", "self.window - 1]", "self.window]", "core/test_plan -k loop_over_all"),
    Mutant("core/plan.py", "key_pos >= self.skip_keys", "key_pos > self.skip_keys", "core/test_contributions -k tiles"),
    Mutant("core/plan.py", "(below + counts / 2)", "below", "core/test_correlation"),
    Mutant(
        "core/plan.py",
        "sequence * self.n_groups // len",
        "0 * self.n_groups // len",
        "core/test_correlation -k resampling",
    ),
    Mutant(
        "core/correlation.py",
        "entries.cumsum(-1) - entries / 2",
        "entries.cumsum(-1)",
        "core/test_correlation -k scipys",
    ),
    Mutant("core/correlation.py", "distance - distance.mean()", "distance", "core/test_correlation -k curves"),
    Mutant("core/plan.py", "start * step", "step", "core/test_plan -k equally_likely"),
    # Samples of shuffles
    Mutant("core/shuffles.py", "GOLDEN * np", "0 * np", "core/test_shuffles -k spread_evenly"),
    Mutant("core/shuffles.py", "(start[block] + number)", "(1 + number)", "core/test_shuffles -k equally_likely"),
    Mutant("core/shuffles.py", "2 + half]", "2]", "core/test_shuffles -k differ"),
    Mutant("core/null.py", "entry_counts.sum(0)", "entry_counts.amax(0)", "core/test_null -k curves_are_close"),
    Mutant("core/shuffles.py", ".clamp(max=RUN)", ".clamp(min=RUN)", "core/test_shuffles -k before_they_are_drawn"),
    Mutant(
        "core/shuffles.py", "fixed = min(self.entries.skip_keys, length)", "fixed = 0", "laws/test_nulls -k skipped"
    ),
    Mutant("core/shuffles.py", "] = fixed + np.random", "] += 0 * np.random", "laws/test_nulls -k moved_vectors"),
    Mutant("core/null.py", "halves[:, 1]) / 2", "halves[:, 1])", "core/test_null -k stated"),
    Mutant("core/kernels/native.cpp", "bad = number + 1", "bad = number", "core/test_kernels -k finite_in_a_run"),
    Mutant("core/kernels/native.cpp", "layer.skip_keys - key, 0)", "0 - key, 0)", "core/test_kernels -k runs_are"),
    Mutant("core/kernels/native.cpp", "if ((room -= KEYS) >= 0)", "if (true)", "core/test_kernels -k cells_of"),
    # Which heads are Positional Heads, and text that shows nothing
    Mutant("core/statistics.py", "2 * most >= len", "most >= len", "laws/test_resolution -k repeated_token"),
    Mutant("core/rank_agreement.py", "others if paired else others.roll(1, 0)", "others", "core/test_rank_agreement"),
    Mutant("core/rank_agreement.py", "stats.hypergeom.sf(shared - 1", "stats.hypergeom.sf(shared", "core/test_rank"),
    Mutant("core/rank_agreement.py", "max(0.0, 1 - noise)", "correlation", "core/test_rank_agreement"),
    Mutant("core/statistics.py", "(1 + 1 / repeats)", "1", "core/test_statistics"),
    Mutant("core/statistics.py", "stats.t.sf", "stats.t.cdf", "core/test_statistics"),
    # What tokens, texts and heads are given
    Mutant("core/heads.py", "head.layer < n_layers\n", "head.layer <= n_layers\n", "core/test_heads"),
    # Values that make no sense, names of methods, runs that were stopped
    Mutant("core/arguments.py", "(value) and abs(value) < LIMIT", "(value)", "laws/test_bad_values"),
    # Intervals, and units that share nothing
    Mutant("core/statistics.py", "np.ones(units + 1)", "np.ones(units + 1) / 2", "core/test_statistics -k clopper"),
    Mutant(
        "core/statistics.py", "for end in (high, low)", "for end in (low, high)", "core/test_statistics -k bootstrap_t"
    ),
    Mutant("core/statistics.py", "units < FEWEST_UNITS", "units < 1", "core/test_statistics -k too_few"),
    Mutant("core/head_sets.py", "FEWEST_PERMUTATIONS - 1, -1", "0, -1", "studies/test_budget -k plans_of_sets"),
    # Controls of any layer, and what predicts harm
    Mutant("core/head_sets.py", "comb(len(rest), len(top))", "wanted", "core/test_head_sets -k so_many_are_wanted"),
    Mutant("core/head_sets.py", "in pool if head not in taken]\n    sets", "in pool]\n    sets", "core/test_head_sets"),
    Mutant("core/predictors.py", "own[(groups[own] + keys)", "own[(keys)", "core/test_predictors -k all_orders"),
    Mutant("core/predictors.py", ">= found - 1e-12", "> found", "core/test_predictors -k all_orders"),
    Mutant("core/predictors.py", "means.gather(1, drawn)", "means", "core/test_predictors -k double_bootstrap"),
    Mutant("core/predictors.py", "_sd(found - found[0])", "_sd(found)", "core/test_predictors -k double_bootstrap"),
    # Files are whole, and what is being written is nobody else's to clear
    Mutant("core/whole_files.py", "    _clear_left_behind(file)\n", "", "core/test_whole_files -k killed"),
    Mutant("core/whole_files.py", "glob.escape(file.name)", "file.name", "core/test_whole_files -k killed"),
    Mutant("core/whole_files.py", '"????????"', '"*"', "core/test_whole_files -k killed"),
    Mutant("core/whole_files.py", "fcntl.flock(handle, fcntl.LOCK_EX)", "pass", "core/test_whole_files -k live"),
    Mutant("core/whole_files.py", "if os.path.lexists(name)", "if True", "core/test_whole_files -k any_moment"),
    Mutant("core/whole_files.py", "if fcntl is None:  #", "if fcntl:  #", "core/test_whole_files -k any_moment"),
    # Head profiles: where attention goes, what keys hold, what pairs agree on
    Mutant("core/attention_sums.py", "width + 1, 1)", "width, 1)", "scoring/test_head_profile -k distance_and_mass"),
    Mutant("core/attention_sums.py", "max(0, sinks - start)", "0", "scoring/test_head_profile -k distance_and_mass"),
    Mutant("core/attention_sums.py", "by_distance + free, free", "by_distance, free", "scoring/test_head_profile"),
    Mutant("core/attention_sums.py", "tril(stop - window)", "tril(stop - window - 1)", "scoring/test_head_profile"),
    Mutant("core/token_matches.py", "before[1:] = key[:-1]", "before[:-1] = key[1:]", "scoring/test_head_profile"),
    Mutant(
        "core/token_matches.py", "(distance > 0)", "(distance >= 0)", "scoring/test_head_profile -k transformer_lens"
    ),
    Mutant("core/pair_sums.py", "size = 2 * length", "size = length", "scoring/test_head_profile -k agreement"),
    Mutant("core/pair_sums.py", "scores.topk(most,", "(-scores).topk(most,", "scoring/test_head_profile -k agreement"),
    Mutant("core/pair_sums.py", ".triu(1)\n    steps", ".triu(0)\n    steps", "scoring/test_head_profile -k semantic"),
    Mutant("core/kernel_score.py", "energy[:, slow.cpu()]", "energy[:, ~slow.cpu()]", "core/test_kernel_score"),
    Mutant("core/kernel_score.py", "(rank - 1)", "rank", "core/test_kernel_score"),
    Mutant("core/distance_sums.py", ":sinks] = True", ":0] = True", "scoring/test_distance_profile -k own_attention"),
    Mutant(
        "core/distance_sums.py",
        "* total / (t + 1)",
        "* total / (t + 2)",
        "scoring/test_distance_profile -k effect_of_distance",
    ),
    Mutant(
        "core/distance_sums.py",
        "index_add_(0, free,",
        "index_add_(0, every,",
        "scoring/test_distance_profile -k own_attention",
    ),
)
