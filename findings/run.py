"""Run the experiments of docs/findings.md on SmolLM2, one part at a time; a killed run continues where it stopped.

    python findings/run.py                 # every part, in order; finished results are not run again
    python findings/run.py scores singles  # some parts

Each result is a file of the library (`HeadScores.load`, `AblationStudy.load`, ...), beside it `time.json` with how long it
took. Parts that are not finished are kept in findings/unfinished.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import positional_heads as ph

HERE = Path(__file__).parent
UNFINISHED = HERE / "unfinished"
KINDS = ("prose", "code", "dialogue", "technical")
SEED = 0

LENGTHS = {512: (16, None), 2048: (8, 2**18), 8192: (4, 2**20)}
"""Tokens of a sequence: how many sequences of a text, and query-key pairs sampled of each (None: all)."""
SHUFFLES, RESAMPLES, CONTROL_KEYS = 20, 200, 64

EXAM = {"length": 512, "examples": 6}
"""Settings of the task that all ablations are measured on."""
HEADS = 27
"""Heads that are ablated together: the top 10 % of 270."""
PERMUTED, RANDOM = 99, 20


def sequences(model, kind, length, count):
    """Sequences of one kind of text, drawn at random."""
    pieces = [piece for piece in ph.cut_text(model, ph.bundled_text(kind), length) if len(piece) == length]
    return [pieces[index] for index in sorted(random.Random(SEED).sample(range(len(pieces)), count))]


def once(folder: Path, load: Callable, run: Callable):
    """The result in a folder; run and saved if there is none."""
    if folder.is_dir():
        return load(folder)
    print(f"{folder.relative_to(HERE)} ...", flush=True)
    began, processor = time.time(), time.process_time()
    result = run(UNFINISHED / folder.relative_to(HERE))
    took = {
        "minutes": round((time.time() - began) / 60, 1),
        "processor_minutes": round((time.process_time() - processor) / 60, 1),
    }
    result.save(folder)
    (folder / "time.json").write_text(json.dumps({**took, "threads": torch.get_num_threads()}) + "\n", encoding="utf-8")
    print(f"    {took['minutes']} minutes: {result.verdict}", flush=True)
    return result


def scores(model):
    """Scores of four kinds of text at three lengths, with null and control; at 512 tokens at both temperatures."""
    for length in LENGTHS:
        for kind in KINDS:
            score(model, kind, length)
    for kind in KINDS:
        score(model, kind, 512, "attention")


def score(model, kind, length, temperature=1.0):
    count, pairs = LENGTHS[length]
    name = f"{kind}-{length}" + ("-attention" if temperature == "attention" else "")

    def run(checkpoint):
        result = ph.score_heads(
            model,
            sequences(model, kind, length, count),
            temperature=temperature,
            null_repeats=SHUFFLES,
            control_keys=CONTROL_KEYS,
            pairs=pairs,
            resamples=RESAMPLES,
            batch_size=max(1, 2048 // length),
            checkpoint=checkpoint,
            seed=SEED,
            progress=True,
        )
        return result if length == min(LENGTHS) and kind == "prose" else result.without_curves()

    return once(HERE / "scores" / name, ph.HeadScores.load, run)


def ablations(model):
    """Ablate the heads that each measure ranks highest, in three ways, on all questions of one exam."""
    ranked = score(model, "prose", 512)
    for ranking in ("rho", "excess", "rho_curve", "retrieval"):
        ablation(model, ranked, ranking, "zero", PERMUTED if ranking in {"rho", "excess"} else RANDOM)
    for ranking in ("rho", "retrieval"):
        ablation(model, ranked, ranking, "mean", RANDOM)
    for ranking in ("rho", "retrieval"):
        ablation(model, ranked, ranking, "far", RANDOM)


def ablation(model, ranked, ranking, mode, permuted):
    def run(checkpoint):
        return ph.ablation_study(
            model,
            ranked,
            "exam",
            counts=[HEADS],
            rank_by=ranking,
            mode=mode,
            distance=64 if mode == "far" else None,
            n_permuted=permuted,
            n_random=RANDOM,
            n_anywhere=RANDOM if ranking == "rho" else 0,
            singles="none",
            checkpoint=checkpoint,
            seed=SEED,
            progress=True,
            haystack=ph.bundled_text("prose"),
            **EXAM,
        )

    return once(HERE / "ablation" / f"{ranking}-{mode}", ph.AblationStudy.load, run)


def singles(model):
    """Ablate each of the 270 heads alone."""
    ranked = score(model, "prose", 512)

    def run(checkpoint):
        return ph.ablation_study(
            model,
            ranked,
            "exam",
            counts=[],
            singles="all",
            checkpoint=checkpoint,
            seed=SEED,
            progress=True,
            haystack=ph.bundled_text("prose"),
            **EXAM,
        )

    return once(HERE / "ablation" / "singles", ph.AblationStudy.load, run)


PARTS = {"scores": scores, "ablations": ablations, "singles": singles}


def main():
    chosen = sys.argv[1:] or list(PARTS)
    if unknown := set(chosen) - PARTS.keys():
        sys.exit(f"no part {', '.join(unknown)}: choose of {', '.join(PARTS)}")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    model = ph.load_model("smollm2")
    for name in chosen:
        PARTS[name](model)


if __name__ == "__main__":
    main()
