"""Measure the small models that training.py trained: heads over steps, other encodings, bases, and another text.

    python experiments/small.py runs                          # every part; finished ones are not run again
    python experiments/small.py runs emergence-rotary-1e4-0   # some parts

Results are kept in experiments/small: studies as the library saves them, and tables with one row per head or answer.
"""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from run import HERE, SEED, once, parts_asked
from training import BASES, RUNS, passages
from transformer_lens.model_bridge import TransformerBridge

import positional_heads as ph
from positional_heads.studies.extrapolation import text_losses
from positional_heads.zoo.architecture import BOS_ID, TRAINING_LENGTH, byte_tokenizer, model_of_encoding
from positional_heads.zoo.training_checkpoints import load_checkpoint

KEPT = HERE / "small"
STEPS = (0, 128, 500, 1000, 1250, 1500, 1750, 2000, 2500, 2929)
LAST = STEPS[-1]
ROTARY = [name for name in RUNS if RUNS[name][1] == "rotary"]
BASED = [name for name in ROTARY if not name.startswith("passages")]
SEQUENCES = 16
PASSKEYS = {"length": TRAINING_LENGTH, "depths": 4, "examples": 4, "seed": SEED}
NEAR = 64
"""Tokens back: passkeys far back are farther than this."""
FEW = PASSKEYS | {"examples": 2}
TEXTS = {"plain": lambda text: text, "passages": passages}


def loaded(runs: Path, name: str, step: int = LAST, base: float | None = None) -> TransformerBridge:
    """The model of a run at a step, from its 8-bit checkpoint; with another base than it was trained on if given."""
    options = dict(zip(RUNS[name][::2], RUNS[name][1::2], strict=True))
    model = model_of_encoding(options["--encoding"], base or float(options.get("--base", 10000)))
    model.load_state_dict(load_checkpoint(runs / name / "checkpoints" / f"step-{step:06d}.safetensors"))
    model.name_or_path = f"{name}-step-{step}"
    return ph.load_model(model, tokenizer=byte_tokenizer())


def sequences(text: str = "plain", length: int = TRAINING_LENGTH, count: int = SEQUENCES) -> torch.Tensor:
    """Sequences of the bundled text, which is held out, begun as in training."""
    tokens = list(TEXTS[text](ph.bundled_text()).encode())
    starts = torch.linspace(0, len(tokens) - length, count).long().tolist()
    return torch.tensor([[BOS_ID, *tokens[start : start + length - 1]] for start in starts])


def named(load: Callable[[], Any], name: str) -> Callable[[], Any]:
    """The function by a name that says nothing of this machine."""

    def loading() -> Any:
        return load()

    loading.__name__ = name
    return loading


def emergence(runs: Path, name: str) -> None:
    """Every head over the steps of a run, on the kind of text that it reads, beside loss and passkeys."""

    def run(checkpoint: Path) -> ph.EmergenceStudy:
        checkpoints = {step: named(partial(loaded, runs, name, step), f"{name}-step-{step}") for step in STEPS}
        rows = sequences("passages" if name.startswith("passages") else "plain")
        settings = {"null_repeats": 10, "retrieval_examples": 4, "checkpoint": checkpoint, "progress": True}
        return ph.emergence_study(checkpoints, rows, "passkey", **settings, **FEW)

    once(f"small/emergence-{name}", ph.EmergenceStudy.load, run)


def tabulated(name: str, rows: Callable[[], Iterable[pd.DataFrame]]) -> None:
    """Keep the table of a part."""
    file = KEPT / f"{name}.csv"
    if not file.is_file():
        KEPT.mkdir(exist_ok=True)
        pd.concat(rows()).to_csv(file, index=False, float_format="%.6g")


def distances(runs: Path) -> Iterable[pd.DataFrame]:
    """How far the heads of every encoding attend, and how much of their scores distance explains."""
    for name in RUNS:
        profile = ph.distance_profile(loaded(runs, name), sequences(), window=TRAINING_LENGTH // 2)
        yield profile.to_frame().assign(
            run=name, far=lambda frame, p=profile: frame["name"].isin(map(str, p.long_range))
        )


def answers(runs: Path) -> Iterable[pd.DataFrame]:
    """Loss per byte of each sequence and each passkey's answer, of every run; and of every base at run time."""
    for name in RUNS:
        for base in [None, *(BASES.values() if name in BASED else ())]:
            model = loaded(runs, name, base=base)
            losses = text_losses(model, list(sequences()), 1).tolist()
            found = ph.evaluate(model, "passkey", **PASSKEYS).to_frame().assign(measure="passkey")
            text = pd.DataFrame({"measure": "loss", "unit": range(len(losses)), "loss": losses})
            yield pd.concat([text, found]).assign(run=name, base=base)


def hidden(pattern: torch.Tensor, hook: Any, head: int) -> torch.Tensor:  # noqa: ARG001  a hook gets both
    """Attention of one head to keys within `NEAR` tokens only, made to add up to 1 again; in any encoding."""
    queries, keys = pattern.shape[-2:]
    far = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys) > NEAR
    near = pattern[:, head].masked_fill(far, 0.0)
    pattern = pattern.clone()
    pattern[:, head] = near / near.sum(-1, keepdim=True)
    return pattern


def needed(runs: Path) -> Iterable[pd.DataFrame]:
    """Passkeys far back as the model is, and with the far keys of one head hidden, each head in turn."""
    for name in RUNS:
        model = loaded(runs, name)
        for head in [None, *product(range(model.cfg.n_layers), range(model.cfg.n_heads))]:
            hooks = [] if head is None else [(f"blocks.{head[0]}.attn.hook_pattern", partial(hidden, head=head[1]))]
            with model.hooks(fwd_hooks=hooks):
                found = ph.evaluate(model, "passkey", **FEW).to_frame()
            yield found[found["reach"] == "long"].assign(run=name, head="none" if head is None else str(ph.Head(*head)))


def texts(runs: Path) -> Iterable[pd.DataFrame]:
    """Scores of every head on plain text and on passages: trained on one or the other, and not trained."""
    for name in ("rotary-1e4-0", "passages-0"):
        for step in (0, LAST):
            model = loaded(runs, name, step)
            for text in TEXTS:
                scores = ph.score_heads(model, sequences(text), null_repeats=20)
                yield scores.to_frame().assign(run=name, step=step, text=text)


def lengths(runs: Path) -> Iterable[pd.DataFrame]:
    """Scores at every length of the curriculum, before and after the model was trained on it."""
    for name in BASED:
        for step in (1000, 1750, LAST):
            model = loaded(runs, name, step)
            for length in (64, 128, 256, 512):
                rows = sequences(length=length, count=SEQUENCES * TRAINING_LENGTH // length)
                found = ph.score_heads(model, rows, null_repeats=10, control_keys=4)
                yield found.to_frame().assign(run=name, step=step, length=length)


def jumps(runs: Path) -> Iterable[pd.DataFrame]:
    """Steps of D at the training length by base, measured and predicted."""
    for name in BASED:
        study = ph.jump_study(loaded(runs, name), sequences(length=TRAINING_LENGTH * 5 // 4, count=32), sequences=32)
        yield study.to_frame().assign(run=name)


def bases(runs: Path) -> Iterable[pd.DataFrame]:
    """Twice the training length: every base at run time, on models that were trained on every base."""
    for name in BASED:
        settings = {"sequences": 4, "depths": 4, "examples": 4, "seed": SEED}
        study = ph.base_sweep(loaded(runs, name), ph.bundled_text(), [*BASES.values()], **settings)
        yield study.to_frame().assign(run=name)


def scores(runs: Path) -> Iterable[pd.DataFrame]:
    """Scores of every head under every base at run time, on models that were trained on every base."""
    for name in BASED:
        for base in BASES.values():
            found = ph.score_heads(loaded(runs, name, base=base), sequences(), null_repeats=20)
            yield found.to_frame().assign(run=name, base=base)


TABLES: dict[str, Callable[[Path], Iterable[pd.DataFrame]]] = {
    one.__name__: one for one in (distances, answers, needed, texts, lengths, jumps, bases, scores)
}
PARTS: dict[str, Callable[[Path], Any]] = {
    **{f"emergence-{name}": partial(emergence, name=name) for name in ROTARY},
    **{name: lambda runs, name=name: tabulated(name, partial(TABLES[name], runs)) for name in TABLES},
}


def main() -> None:
    """Run the parts named on the command line, or all."""
    asked = parts_asked(__doc__, PARTS, runs="folder that training.py wrote")
    for name in asked.parts:
        PARTS[name](asked.runs)


if __name__ == "__main__":
    main()
