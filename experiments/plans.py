"""Which measure picks the key heads that may see only a window, and which the rotary pairs that may go? On SmolLM2.

    python experiments/plans.py                # the ranks, then every study; finished results are not run again
    python experiments/plans.py exam-1024      # some of them; exam-1024-layers: against plans within layers
    python experiments/plans.py pairs-exam-1024-freeze pairs-exam-1024-drop pairs-text-2048-freeze  # of pairs

Results lie beside those of run.py, in experiments/plans, and are resumed in the same way.
"""

from dataclasses import replace
from itertools import chain
from pathlib import Path

from run import HERE, KINDS, SEED, SHUFFLES, once, parts_asked, sequences
from transformer_lens.model_bridge import TransformerBridge

import positional_heads as ph

WINDOW, SINKS = 256, 4
BUDGETS = (0.25, 0.5, 0.75)
RANDOM = 20
MEASURES = (
    *("reach", "mean_distance", "distant_mass", "-sink_mass", "retrieval", "induction", "semantic", "-positional"),
    *("rho", "rho_curve", "excess", "kernel", "massive_key"),
)
LAYERS = "-layers"
PROFILED = (1024, 12)
"""Tokens and number of the sequences that are profiled; they are prose, the texts of the tasks are technical."""
EXAMS = {"exam-1024": (1024, 8), "exam-2048": (2048, 4)}
"""Passkey, key-value recall, copying and text in one sequence: its tokens, and how many of them."""
TEXTS = {"text-2048": (2048, 6)}
"""Blocks of text of 256 tokens, none of which begins within 512 tokens of the start."""
MATCHED = ("reach",)
"""Measures that are also compared with random plans of as many windows in every layer: 60 sets of windows each."""
RANKS, RANKED = "ranks", (1024, 4)
"""Tokens and number of the sequences of each kind of text that rotary pairs are ranked on, in MHA2MLA's format."""
PAIR_STUDIES = {f"pairs-{task}-{how}": (task, how) for how in ("freeze", "drop") for task in ("exam-1024", "text-2048")}
"""Task of each study of rotary pairs, and what becomes of the pairs that are not kept."""


def profile(model: TransformerBridge) -> ph.HeadProfile:
    """Every measure of every head, on prose; its table is kept beside it, itself it is too large to be."""
    length, count = PROFILED
    settings = {"window": WINDOW, "sinks": SINKS, "null_repeats": SHUFFLES, "seed": SEED}

    def run(checkpoint: Path) -> ph.HeadProfile:
        drawn = sequences(model, "prose", length, count)
        return ph.profile_heads(model, drawn, checkpoint=checkpoint, progress=True, **settings)

    found = once("unfinished/profile", ph.HeadProfile.load, run, {**settings, "sequences": count, "longest": length})
    (HERE / "plans").mkdir(exist_ok=True)
    found.to_frame().to_csv(HERE / "plans" / "heads.csv", index=False, float_format="%.6g")
    return found


def ranks(model: TransformerBridge) -> None:
    """Pairs in the order of MHA2MLA's 2-norm rule, on each kind of text and on all of them."""
    length, count = RANKED
    drawn = {kind: sequences(model, kind, length, count) for kind in KINDS}
    for name, texts in {**drawn, "all": [*chain.from_iterable(drawn.values())]}.items():
        file = HERE / "plans" / "ranks" / f"{name}.pth"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            ph.formats.write_mha2mla_ranks(ph.profile_heads(model, texts, retrieval=None, progress=True), file)


def exam(model: TransformerBridge, length: int, examples: int) -> ph.AnswerTask:
    """All questions in one sequence."""
    from positional_heads.studies.tasks.exam import exam as make

    return make(model, length=length, examples=examples, haystack=ph.bundled_text("technical"), held_out=1, seed=SEED)


def text(model: TransformerBridge, length: int, examples: int) -> ph.AnswerTask:
    """Text with its whole context only: with a truncated one, a window hides nothing."""
    from positional_heads.studies.tasks.perplexity import perplexity

    task = perplexity(
        model, length=length, near=256, examples=examples, haystack=ph.bundled_text("technical"), seed=SEED
    )
    return replace(task, name="text", examples=tuple(one for one in task.examples if one.reach == "long"))


def task_of(model: TransformerBridge, name: str) -> ph.AnswerTask:
    """A task by its name."""
    return exam(model, *EXAMS[name]) if name in EXAMS else text(model, *TEXTS[name])


def study(model: TransformerBridge, name: str, *, matched: bool = False) -> ph.PlanStudy:
    """Windows on the key heads that each measure ranks lowest, and on random ones, of any layer or of the same ones."""
    task = task_of(model, name)
    profiled = profile(model)
    settings = {"budgets": BUDGETS, "window": WINDOW, "sinks": SINKS, "n_random": RANDOM, "seed": SEED}
    settings["n_matched"] = RANDOM if matched else 0
    by = [one for one in (MATCHED if matched else MEASURES) if one.removeprefix("-") in profiled.names]
    checkpoint = HERE / "unfinished" / "plans" / name  # both studies of a task share their parts

    def run(_: Path) -> ph.PlanStudy:
        return ph.plan_study(
            model, profiled, task, by=by, batch_size=1, checkpoint=checkpoint, progress=True, **settings
        )

    folder = f"plans/{name}{LAYERS if matched else ''}"
    return once(folder, ph.PlanStudy.load, run, {**settings, "budgets": list(BUDGETS), "by": by})


def pair_study(model: TransformerBridge, name: str) -> ph.PlanStudy:
    """The rotary pairs that each measure, MHA2MLA's rules and chance keep; the others are frozen or dropped."""
    task, how = PAIR_STUDIES[name]
    profiled = profile(model)
    settings = {"budgets": BUDGETS, "how": how, "n_random": RANDOM, "seed": SEED}

    def run(checkpoint: Path) -> ph.PlanStudy:
        return ph.pair_study(
            model, profiled, task_of(model, task), batch_size=1, checkpoint=checkpoint, progress=True, **settings
        )

    return once(f"plans/{name}", ph.PlanStudy.load, run, {**settings, "budgets": list(BUDGETS)})


def main() -> None:
    """Run the studies named on the command line, or all, those of windows against chance first."""
    names = [RANKS, *EXAMS, *TEXTS, *(f"{name}{LAYERS}" for name in (*EXAMS, *TEXTS)), *PAIR_STUDIES]
    chosen = parts_asked(__doc__, names).parts
    model = ph.load_model("smollm2")
    for name in chosen:
        if name == RANKS:
            ranks(model)
        elif name in PAIR_STUDIES:
            pair_study(model, name)
        else:
            study(model, name.removesuffix(LAYERS), matched=name.endswith(LAYERS))


if __name__ == "__main__":
    main()
