"""Train a small model on, at 2048 and at 512 tokens, and compare its heads before and after: docs/findings.md.

    python experiments/longer.py kjv.txt runs                         # every run, in order; a finished one is kept
    python experiments/longer.py kjv.txt runs longer-0 control-0      # some runs

The model is `experiments/training/rotary-1e4-0.safetensors`, trained on 512 tokens with base 10000. Each run sees half
a million more tokens, in steps of 2048: in sequences of 2048 with the base raised to 100000, or kept, or of 512, the
control. Runs of one seed differ in nothing else. What is kept: how the heads changed on held-out text of 512 and of
2048 tokens, and passkey recall before and after, in experiments/longer.
"""

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

import positional_heads as ph
from positional_heads.zoo.architecture import BOS_ID, byte_tokenizer, model_of_encoding
from positional_heads.zoo.recall_check import passkey_recall
from positional_heads.zoo.train import new_optimizer, train_step
from positional_heads.zoo.training_checkpoints import load_checkpoint

HERE = Path(__file__).parent
START = HERE / "training" / "rotary-1e4-0.safetensors"
KEPT = HERE / "longer"
BEFORE = "before"
WAYS = {"raised": (2048, 1e5), "longer": (2048, 1e4), "control": (512, 1e4)}
"""Tokens of a training sequence, and the base of the frequencies."""
SEEDS = (0, 1)
RUNS = {f"{way}-{seed}": (*settings, seed) for way, settings in WAYS.items() for seed in SEEDS}
TOKENS, PER_STEP, LEARNING_RATE = 500_000, 2048, 5e-4
STEPS = TOKENS // PER_STEP
LENGTHS = {512: 32, 2048: 12}
"""Tokens of the sequences that heads are profiled on, and how many there are."""


def trained(text: bytes, start: Path, length: int, base: float, seed: int, steps: int) -> Any:
    """The model of the checkpoint, trained on for so many steps."""
    model = model_of_encoding("rotary", base)
    model.load_state_dict(load_checkpoint(start))
    if not steps:
        return model
    model.config.max_position_embeddings = length
    optimizer = new_optimizer(model, LEARNING_RATE)
    settings = argparse.Namespace(seed=f"on-{seed}", tokens_per_step=PER_STEP, learning_rate=LEARNING_RATE)
    torch.manual_seed(seed)
    for step in tqdm(range(steps), unit="step", mininterval=30):
        train_step(model, optimizer, text, step, steps, settings, length=length)
    return model


def measured(model: Any, held_out: bytes, folder: Path) -> None:
    """Save the model, its profiles on held-out text, and its recall; the recall last."""
    model.eval().save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    bridge = ph.load_model(folder / "model")
    bridge.cfg.model_name = f"{START.stem} {folder.name}"  # not the folder on this machine
    for length, count in LENGTHS.items():
        places = sorted(random.Random(0).sample(range(len(held_out) // length), count))
        pieces = [held_out[place * length :][: length - 1] for place in places]
        tokens = torch.tensor([[BOS_ID, *piece] for piece in pieces])
        profile = ph.profile_heads(bridge, tokens, retrieval=None, null_repeats=10, beyond_context=True)
        profile.save(folder / f"{length}.safetensors")
    with torch.no_grad():
        recall = {
            length: passkey_recall(lambda tokens: model(input_ids=tokens).logits, held_out, length=length, batch_size=4)
            for length in LENGTHS
        }
    (folder / "recall.json").write_text(json.dumps(recall))


def main() -> None:
    """Train and measure what is not finished, then compare every run with the model before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="plain text that the model was trained on; its last 5 %% are held out")
    parser.add_argument("out", type=Path, help="folder for models and profiles")
    parser.add_argument("runs", nargs="*", help=f"some of {', '.join(RUNS)}; all if not given")
    parser.add_argument("--start", type=Path, default=START, help="the checkpoint to begin with")
    parser.add_argument("--steps", type=int, default=STEPS, help="fewer to try it, whose results go to `out` alone")
    asked = parser.parse_args()
    if unknown := {*asked.runs} - {*RUNS}:
        sys.exit(f"no run {', '.join(sorted(unknown))}: choose of {', '.join(RUNS)}")
    if not asked.text.is_file():
        parser.error(f"{asked.text}: no such text file")
    text = asked.text.read_bytes()
    held_out, needed = len(text) // 20, max(length * count for length, count in LENGTHS.items())
    if held_out < needed:
        sys.exit(f"{asked.text} has {len(text)} bytes: give at least {20 * needed}, of which the last 5 % are held out")
    for name in [BEFORE, *(asked.runs or RUNS)]:
        folder = asked.out / name
        if not (folder / "recall.json").is_file():
            length, base, seed = RUNS.get(name, (512, 1e4, 0))
            steps = asked.steps if name in RUNS else 0
            model = trained(text[:-held_out], asked.start, length, base, seed, steps)
            measured(model, text[-held_out:], folder)
    whole = (asked.steps, asked.start) == (STEPS, START)
    compared(asked.out, KEPT if whole else asked.out / "compared")


def compared(out: Path, kept: Path = KEPT) -> None:
    """Keep how each finished run differs from the model before, and what each recalls; what is kept of others stays."""
    finished = [name for name in (BEFORE, *RUNS) if (out / name / "recall.json").is_file()]
    kept.mkdir(exist_ok=True)
    file = kept / "recall.json"
    recall = json.loads(file.read_text()) if file.is_file() else {}
    recall |= {name: json.loads((out / name / "recall.json").read_text()) for name in finished}
    file.write_text(json.dumps(recall, indent=1) + "\n")
    for length in LENGTHS:
        before = ph.HeadProfile.load(out / BEFORE / f"{length}.safetensors")
        for name in finished[1:]:
            after = ph.HeadProfile.load(out / name / f"{length}.safetensors")
            ph.compare(before, after, names=[BEFORE, name]).save(kept / f"{name}-{length}.safetensors")


if __name__ == "__main__":
    main()
