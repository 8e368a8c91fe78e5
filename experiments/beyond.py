"""Run the experiments of docs/findings.md beyond the paper, on SmolLM2: moved dimensions, and the jump at 8192 tokens.

    python experiments/beyond.py                          # every part, in order; finished results are not run again
    python experiments/beyond.py moved-rho-freeze jumps   # some parts

Results lie beside those of run.py, in experiments/beyond, and are resumed in the same way.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from run import CONTROL_KEYS, EXAM, HERE, RANDOM, RESAMPLES, SEED, SHUFFLES, once, parts_asked, sequences

import positional_heads as ph

MOVED = {
    "moved-rho-freeze": ("rho", "freeze", (8,)),
    "moved-retrieval-freeze": ("retrieval", "freeze", (8,)),
    "moved-retrieval-zero": ("retrieval", "zero", (8,)),
}
"""Ranking of the heads, what is done to their pairs, and how many of the 32."""
HEADS = 27
"""Heads whose pairs are moved together: the top 10 % of 270."""


def moved(name: str) -> ph.ManipulationStudy:
    """Slow, fast, dominant and random pairs of the top heads, and slow pairs of random heads, on the exam."""
    rank_by, how, counts = MOVED[name]
    settings = {"how": how, "counts": counts, "top": HEADS, "rank_by": rank_by, "n_random": RANDOM, "seed": SEED}

    def run(checkpoint: Path) -> ph.ManipulationStudy:
        from positional_heads.studies.tasks.exam import exam

        model = ph.load_model("smollm2")
        task = exam(model, haystack=ph.bundled_text("prose"), held_out=1, seed=SEED, **EXAM)
        scores = ph.HeadScores.load(HERE / "scores" / "prose-512")
        return ph.manipulation_study(
            model, scores, task, batch_size=1, checkpoint=checkpoint, progress=True, **settings
        )

    return once(f"beyond/{name}", ph.ManipulationStudy.load, run)


def response(checkpoint: Path) -> ph.DistanceResponse:
    """Whether heads look nearer when their dominant pairs turn faster, on 8 x 512 tokens of prose."""
    model = ph.load_model("smollm2")
    settings = {"factors": (0.5, 2.0), "n_random": 5, "null_repeats": 5, "seed": SEED}
    rows = sequences(model, "prose", 512, 8)
    return ph.distance_response(model, rows, checkpoint=checkpoint, progress=True, **settings)


def jumps(_: Path) -> ph.JumpStudy:
    """Steps of D across 8192 tokens, the training length: two sequences of prose measured, two others predict."""
    model = ph.load_model("smollm2")
    text = ph.bundled_text("prose")
    return ph.jump_study(model, text, sequences=4, pairs=2**20, samples=512, seed=SEED, progress=True)


def order(_: Path) -> ph.HeadScores:
    """The 16 x 512 tokens of prose of run.py with the tokens of each sequence in random order: no content drifts."""
    model = ph.load_model("smollm2")
    generator = torch.Generator().manual_seed(SEED)
    rows = [row[torch.randperm(len(row), generator=generator)] for row in sequences(model, "prose", 512, 16)]
    settings = {"null_repeats": SHUFFLES, "resamples": RESAMPLES, "batch_size": 4, "control_keys": CONTROL_KEYS}
    return ph.score_heads(model, rows, seed=SEED, progress=True, **settings)


def tabulated(name: str, run: Callable[[Path], Any], load: Callable[[Path], Any]) -> None:
    """Run a part whose record is too large to be kept here, and keep its table."""
    found = once(f"unfinished/{name}", load, run)
    (HERE / "beyond").mkdir(exist_ok=True)
    found.to_frame().to_csv(HERE / "beyond" / f"{name}.csv", index=False, float_format="%.6g")


PARTS = {
    **{name: partial(moved, name) for name in MOVED},
    "response": partial(tabulated, "response", response, ph.DistanceResponse.load),
    "jumps": partial(tabulated, "jumps", jumps, ph.JumpStudy.load),
    "order": partial(tabulated, "order", order, ph.HeadScores.load),
}


def main() -> None:
    """Run the parts named on the command line, or all."""
    for name in parts_asked(__doc__, PARTS).parts:
        PARTS[name]()


if __name__ == "__main__":
    main()
