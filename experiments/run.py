"""Run the experiments of docs/findings.md on SmolLM2, one part at a time; a killed run continues where it stopped.

    python experiments/run.py                       # every part, in order; finished results are not run again
    python experiments/run.py scores ablations      # some parts

Each result is a file of the library (`HeadScores.load`, `AblationStudy.load`, ...); `time.json` beside it says how long
it took. Parts that are not finished are kept in experiments/unfinished.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

import positional_heads as ph

HERE = Path(__file__).parent
KINDS = ("prose", "code", "dialogue", "technical")
SEED = 0

LENGTHS = {512: (16, None), 2048: (8, 2**18), 8192: (4, 2**20)}
"""Tokens of a sequence: how many sequences of a text, and query-key pairs sampled of each (None: all)."""
SHUFFLES, RESAMPLES, CONTROL_KEYS = 20, 200, 64

EXAM = {"length": 512, "examples": 8}
"""Settings of the task that all ablations are measured on; its text is the bundled prose."""
RECORDED = ("rank_by", "mode", "distance", "n_permuted", "n_random", "n_anywhere")
"""Settings of a study that its result knows by the same name."""
HEADS = 27
"""Heads that are ablated together: the top 10 % of 270."""
PERMUTED, RANDOM = 99, 20

RECALLED = 4096
"""The model was trained on 8192 tokens; it recalls a passkey at 4096, and at 8192 does worse than chance."""
FOLLOWED = ("L4H1", "L7H1", "L7H5", "L8H0")
"""Heads that beat their null, and stay without the first 64 keys, on all four texts of 2048 tokens; those of layers 27
and 29, which do, too, would double the cost."""


def sequences(model: TransformerBridge, kind: str, length: int, count: int) -> list[torch.Tensor]:
    """Sequences of one kind of text, drawn at random from its pieces."""
    pieces = [piece for piece in ph.cut_text(model, ph.bundled_text(kind), length) if len(piece) == length]
    return [pieces[index] for index in sorted(random.Random(SEED).sample(range(len(pieces)), count))]


def once(
    name: str, load: Callable[[Path], Any], run: Callable[[Path], Any], asked: Mapping[str, Any] | None = None
) -> Any:
    """The result kept under this name, with a word if it has other settings than asked; run if there is none."""
    folder = HERE / name
    if (folder / "time.json").is_file():  # written last
        result = load(folder)
        say_kept(name, others(result.provenance, asked or {}))
        return result
    began, used = time.time(), time.process_time()
    result = run(HERE / "unfinished" / name)
    took = {"minutes": round((time.time() - began) / 60, 1), "cpu_minutes": round((time.process_time() - used) / 60, 1)}
    result.save(folder)
    device = {"device": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    told = json.dumps({**took, "threads": torch.get_num_threads(), **device})
    (folder / "time.json").write_text(f"{told}\n", encoding="utf-8")
    sys.stdout.write(f"{name}: {took['minutes']} minutes. {result.verdict}\n")
    sys.stdout.flush()
    return result


def others(provenance: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Settings that a kept result was made with, where this file now asks for others."""
    parts = [provenance.get(part) or {} for part in ("scores", "task", "ablation", "data", "settings")]
    made = {name: value for part in parts for name, value in part.items()}
    changed = [f"{name} {made.get(name)}, not {value}" for name, value in asked.items() if made.get(name) != value]
    return "; ".join(changed)


@cache
def say_kept(name: str, made_with: str = "") -> None:
    """Say once that a result is kept, and so not run; and what it was made with, if that is no longer asked for."""
    though = f", although it was made with {made_with}" if made_with else ""
    sys.stdout.write(f"{name}: kept, not run again{though}; remove experiments/{name} to run it\n")
    sys.stdout.flush()


def scores(model: TransformerBridge) -> None:
    """Score four kinds of text at three lengths, with null and control; at 512 tokens at both temperatures."""
    for length in LENGTHS:
        for kind in KINDS:
            score(model, kind, length)
        if length == min(LENGTHS):
            for kind in KINDS:
                score(model, kind, length, "attention")


def score(model: TransformerBridge, kind: str, length: int, temperature: Any = 1.0) -> ph.HeadScores:
    """Score one kind of text; numbers by distance are not kept, for their size."""
    count, pairs = LENGTHS[length]
    settings: dict[str, Any] = {
        "temperature": temperature,
        "null_repeats": SHUFFLES,
        "control_keys": CONTROL_KEYS,
        "pairs": pairs or "all",
        "resamples": RESAMPLES,
        "seed": SEED,
    }

    def run(checkpoint: Path) -> ph.HeadScores:
        drawn, size = sequences(model, kind, length, count), max(1, 2048 // length)
        scored = ph.score_heads(model, drawn, batch_size=size, checkpoint=checkpoint, progress=True, **settings)
        return scored.without_curves()

    name = f"scores/{kind}-{length}" + ("-attention" if temperature == "attention" else "")
    return once(name, ph.HeadScores.load, run, {**settings, "sequences": count, "longest": length})


def ablations(model: TransformerBridge) -> None:
    """Ablate the heads that each measure ranks highest, in three ways, and ask every question of one exam."""
    for mode in ("zero", "mean", "far"):
        for ranking in ("rho", "excess", "rho_curve", "retrieval"):
            many = ranking == "rho" or mode != "mean"
            ablation(model, ranking, mode, PERMUTED if many else RANDOM)


def ablation(model: TransformerBridge, ranking: str, mode: Any, permuted: int) -> ph.AblationStudy:
    """Ablate the top heads of one ranking in one way, beside random heads, permuted rankings and heads of any layer."""
    return study(
        model,
        f"ablation/{ranking}-{mode}",
        counts=[HEADS],
        rank_by=ranking,
        mode=mode,
        distance=64 if mode == "far" else None,
        n_permuted=permuted,
        n_random=RANDOM,
        n_anywhere=RANDOM if ranking == "rho" else 0,
        singles="none",
    )


def singles(model: TransformerBridge) -> None:
    """Ablate each of the 270 heads alone."""
    study(model, "ablation/singles", counts=[], singles="all")


def extrapolation(model: TransformerBridge) -> None:
    """Extend the context from the longest length at which the model recalls a passkey, to twice and four times that.

    Curves are averaged over 32 distances, for their size.
    """
    answers = {"depths": [0.1, 0.4], "examples": 1}
    factors = (2, 4)

    def run(checkpoint: Path) -> ph.ExtrapolationStudy:
        return ph.extrapolation_study(
            model,
            ph.bundled_text("prose"),
            ["none", "linear", "ntk", "yarn", "self_extend"],
            factors,
            heads=FOLLOWED,
            sequences=1,
            training_length=RECALLED,
            checkpoint=checkpoint,
            progress=True,
            haystack=ph.bundled_text("prose"),
            **answers,
        ).averaged(32)

    asked = {**answers, "sequences": 1, "longest": max(factors) * RECALLED}
    once("extrapolation", ph.ExtrapolationStudy.load, run, asked)


def is_pattern(name: str) -> bool:
    """Whether a hook point has an attention pattern."""
    return name.endswith("hook_pattern")


def reach(model: TransformerBridge) -> None:
    """Measure how far back each head attends: mean distance weighted by attention, without the first key, a sink."""
    file = HERE / "reach.json"
    if file.is_file():
        say_kept(file.name)
        return
    count, _ = LENGTHS[512]
    distance = (torch.arange(512)[:, None] - torch.arange(512)).double()
    total = torch.zeros(int(model.cfg.n_layers), int(model.cfg.n_heads), dtype=torch.float64)
    for row in sequences(model, "prose", 512, count):
        with torch.inference_mode():
            _, cache = model.run_with_cache(row[None], names_filter=is_pattern)
        for layer in range(int(model.cfg.n_layers)):
            pattern = cache["pattern", layer][0].double()
            pattern[..., 0] = 0
            far = (pattern * distance).sum(-1) / pattern.sum(-1)
            total[layer] += far[:, 256:].mean(-1)  # queries that can look back at least 256 tokens
    file.write_text(json.dumps((total / count).tolist()) + "\n", encoding="utf-8")


def study(model: TransformerBridge, name: str, **settings: Any) -> ph.AblationStudy:
    """An ablation study on the exam, of the heads as prose of 512 tokens ranks them."""
    ranked = score(model, "prose", 512)
    checkpoint = HERE / "unfinished" / settings.get("mode", "zero")

    def run(_: Path) -> ph.AblationStudy:  # studies of one mode share their parts: a set of heads is run once
        return ph.ablation_study(
            model,
            ranked,
            "exam",
            checkpoint=checkpoint,
            seed=SEED,
            progress=True,
            haystack=ph.bundled_text("prose"),
            **settings,
            **EXAM,
        )

    asked = {name: settings[name] for name in RECORDED if name in settings}
    task = {"lengths": [EXAM["length"]], "examples": EXAM["examples"], "seed": SEED}
    return once(name, ph.AblationStudy.load, run, {**asked, "sizes": settings["counts"], **task})


PARTS = {
    "scores": scores,
    "ablations": ablations,
    "singles": singles,
    "reach": reach,
    "extrapolation": extrapolation,
}


def parts_asked(about: str | None, parts: Iterable[str], **files: str) -> argparse.Namespace:
    """The command line: a path for each of `files`, `text` one that is there, then some of the parts, or all."""
    known = list(parts)
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, meaning in files.items():
        parser.add_argument(name, type=Path, help=meaning)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(known)}; all if not given")
    asked = parser.parse_args()
    if unknown := {*asked.parts} - {*known}:
        parser.error(f"no part {', '.join(sorted(unknown))}: choose of {', '.join(known)}")
    if "text" in files and not asked.text.is_file():
        parser.error(f"{asked.text}: no such text file")
    asked.parts = asked.parts or known
    return asked


def main() -> None:
    """Run the parts named on the command line, or all."""
    chosen = parts_asked(__doc__, PARTS).parts
    model = ph.load_model("smollm2")
    for name in chosen:
        PARTS[name](model)


if __name__ == "__main__":
    main()
