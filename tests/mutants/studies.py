"""Mistakes in studies/ that a test must catch."""

from tests.mutants.mutant import Mutant

MUTANTS = (
    # Ablations go by position and number, and show nothing that is masked
    Mutant("studies/tasks/task.py", "(model, batch)", "(model, range(len(batch)))", "bridge/test_positions -k its_own"),
    # Values that make no sense, names of methods, runs that were stopped
    Mutant(
        "studies/tasks/questions.py",
        "needle == examples",
        "needle is examples",
        "studies/tasks/test_tasks -k position_of_its_control",
    ),
    # Intervals, and units that share nothing
    Mutant("studies/tasks/perplexity.py", "number % units", "number", "studies/tasks/test_tasks -k perplexity"),
    Mutant(
        "studies/tasks/haystack.py",
        "[first : first + size] = True",
        "[first] = True",
        "studies/tasks/test_tasks -k held_out",
    ),
    Mutant(
        "studies/tasks/questions.py", "not in answers)", "in answers or True)", "studies/tasks/test_tasks -k held_out"
    ),
    # Budgets, and the time left
    Mutant("studies/budget.py", "place = 0 if fits(plans[0]) else ", "place = ", "studies/test_budget -k interrupted"),
    Mutant("studies/budget.py", "spent + seconds(plan) <=", "seconds(plan) <=", "studies/test_budget -k long_lengths"),
    Mutant("studies/budget.py", "if minutes == self.minutes)", "if False)", "studies/test_budget -k interrupted"),
    Mutant(
        "core/head_sets.py",
        "            break\n        plans.append",
        "            pass\n        plans.append",
        "studies/test_budget -k below_005",
    ),
    Mutant(
        "core/head_sets.py", "for layer in fewer) - 1", "for layer in fewer)", "studies/test_budget -k can_be_drawn"
    ),
    Mutant("core/head_sets.py", "if kept < drawn:", "if True:", "studies/test_budget -k only_sets_that_exist"),
    Mutant("studies/budget.py", "if minutes > self.minutes]", "if False]", "studies/test_budget -k interrupted"),
    Mutant("studies/budget.py", "- finished.spent + taken", "- finished.spent", "studies/test_budget -k interrupted"),
    Mutant("studies/trials.py", "trial.length < length", "trial.length <= length", "studies/test_budget -k plans_of"),
    Mutant(
        "studies/trials.py",
        "len(fewer.trials) >= fewest",
        "len(fewer.trials) > fewest",
        "studies/test_budget -k plans_of",
    ),
    Mutant("studies/resume.py", "if name not in self.results:", "if True:", "studies/test_budget -k interrupted"),
    Mutant(
        "studies/dpe.py",
        "key=found.__getitem__",
        "key=lambda size: -found[size]",
        "studies/test_extra -k takes_the_best",
    ),
    # LongBench, the evaluation harness, Ray, shards
    Mutant(
        "studies/tasks/evaluate.py",
        '"sha256": sha256, **task.settings',
        '**task.settings, "sha256": sha256',
        "studies/tasks/test_longbench -k documents",
    ),
    Mutant(
        "studies/tasks/longbench.py",
        '.split("\\n"), start=1)',
        ".splitlines(), start=1)",
        "studies/tasks/test_longbench -k lines_end",
    ),
    Mutant(
        "studies/tasks/longbench_metrics.py",
        'generated.lstrip("\\n").split("\\n")\n    line',
        'generated.split("\\n")\n    line',
        "studies/tasks/test_longbench -k judge",
    ),
    Mutant(
        "studies/tasks/harness_tasks.py",
        "with _seeded(request.seed):\n            loaded",
        "if True:\n            loaded",
        "studies/tasks/test_harness -k seed",
    ),
    Mutant("studies/tasks/harness_tasks.py", "[request.doc_id]", "[0]", "studies/tasks/test_harness -k each_documents"),
    # Exams: measured text is outside all facts, questions of both ranges are alike
    Mutant("studies/tasks/exam.py", "return AFTER_FACT + ", "return ", "studies/tasks/test_exam -k begins_after"),
    Mutant("studies/tasks/exam.py", "NOUNS[::-1] if swapped", "NOUNS if swapped", "studies/tasks/test_exam -k alike"),
    Mutant("studies/tasks/exam.py", "if not one.answers & used)", "if True)", "studies/tasks/test_exam -k few_exist"),
    Mutant("studies/tasks/exam.py", "!= (first, ", "!= (None, ", "studies/tasks/test_exam -k retrieval"),
    # Rankings and permutations
    Mutant("studies/ranking.py", "(-values[head], head)", "(values[head], head)", "studies/test_ablation -k rank"),
    Mutant(
        "studies/ranking.py", "ordered[size - 1] == ordered[size]", "False", "studies/test_ablation -k share_a_value"
    ),
    Mutant(
        "studies/ablation.py",
        "n_random if n_permuted is None else n_permuted",
        "n_random",
        "studies/test_ablation -k apart_from_random",
    ),
    Mutant("studies/ablation.py", "retrieval is None and bool", "bool", "studies/test_ablation -k then_no_control"),
    Mutant(
        "core/head_sets.py",
        "if asked.n_anywhere else []",
        "if False else []",
        "studies/test_budget -k any_layer_go_first",
    ),
    Mutant(
        "studies/resume.py", "finished.spent > WORTH_SAYING", "finished.spent > 0", "studies/test_budget -k worth_it"
    ),
    Mutant(
        "studies/plan_study.py",
        "seed=seed * MOST_RANDOM + number",
        "seed=seed",
        "results/test_plan_study studies/test_plan_study -k each_plan",
    ),
    Mutant(
        "studies/pair_study.py", "seed=seed * MOST_RANDOM + number", "seed=seed", "studies/test_pair_study -k each_plan"
    ),
    Mutant("studies/pair_study.py", "n - kept, number", "kept, number", "studies/test_pair_study -k each_plan"),
    Mutant("studies/pair_study.py", '"pairs": {"how": how}', '"pairs": {}', "studies/test_pair_study -k interrupted"),
    Mutant("studies/plan_study.py", "longest <= seen", "longest < seen", "studies/test_plan_study -k impossible"),
    # Manipulations
    Mutant(
        "studies/manipulated_sets.py",
        'f"pairs-{seed}-{number}"',
        'f"pairs-{seed}"',
        "studies/test_manipulation -k by_chance",
    ),
    Mutant(
        "studies/manipulated_sets.py",
        "(abs(frequencies[pair]), -pair)",
        "(-abs(frequencies[pair]), -pair)",
        "studies/test_manipulation -k each_set",
    ),
    Mutant(
        "studies/manipulation.py", "row=row: -row[pair]", "row=row: row[pair]", "studies/test_manipulation -k dominant"
    ),
    Mutant("studies/manipulation.py", '"manipulation": done,', "", "studies/test_manipulation -k interrupted"),
    Mutant(
        "studies/manipulation.py", "model, moved[one], how", "model, {}, how", "studies/test_manipulation -k each_set"
    ),
    # Recommendations
    Mutant(
        "studies/recommendation.py", "rows[:, :trained], 1,", "rows, 1,", "studies/test_recommendation -k run_alone"
    ),
    Mutant("studies/rotary_kinds.py", "or window > self", "or window < self", "studies/test_recommendation -k window"),
    Mutant(
        "bridge/rope_scaling/config_block.py",
        "max(target_length, math",
        "max(trained, math",
        "bridge/rope_scaling/test_config_block -k longest_context",
    ),
    Mutant(
        "bridge/rope_scaling/config_block.py",
        'name == "dynamic":',
        'name == "linear":',
        "bridge/rope_scaling/test_config_block -k longest_context",
    ),
    Mutant(
        "bridge/rope_scaling/plain_rope.py",
        "original >= stated",
        "original <= stated",
        "bridge/rope_scaling/test_config_block -k extended_twice",
    ),
    Mutant("results/choosing.py", "- NOTICEABLE", "", "results/test_recommendation -k recalls_less"),
    Mutant("results/choosing.py", "gentle, key=", "ranked, key=", "results/test_recommendation -k brute_force"),
    Mutant("results/choosing.py", "gentle, key=", "tied, key=", "results/test_recommendation -k brute_force"),
    Mutant("results/choosing.py", "not reaches, factor", "False, factor", "results/test_recommendation -k brute_force"),
    Mutant(
        "studies/distance_response.py",
        "max(start, length // 2)",
        "start",
        "studies/test_distance_response -k models_own_pattern",
    ),
)
