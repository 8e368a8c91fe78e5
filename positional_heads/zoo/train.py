"""Train the bundled model again, or one like it on other text: `python -m positional_heads.zoo.train --help`.

A run is a function of its arguments: the data of step s depend on (seed, s) alone. It saves its state every minute and
can be killed at any time; the same command resumes it.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from tqdm.auto import tqdm
from transformers import LlamaForCausalLM, PreTrainedModel

from positional_heads.core.whole_files import write_atomically
from positional_heads.zoo.architecture import ENCODINGS, bundled_config, byte_tokenizer, model_of_encoding
from positional_heads.zoo.curriculum import make_example
from positional_heads.zoo.recall_check import passkey_recall, repeat_gain
from positional_heads.zoo.training_checkpoints import save_checkpoint

CURRICULUM = ((0.15, 64), (0.35, 128), (0.6, 256), (1.0, 512))
"""(until this fraction of the run, sequence length): copying is learned on short sequences first."""
FIRST_CHECKPOINT = 32
"""Step of the first checkpoint after the one before training."""


def main(argv: list[str] | None = None) -> None:
    """Train, evaluate, and export a model folder that `transformers` and `transformer_lens` load."""
    arguments = _parser().parse_args(argv)
    text = arguments.text.read_bytes()
    held_out = len(text) // 20
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(arguments.seed)
    model = _new_model(arguments)
    optimizer = new_optimizer(model, arguments.learning_rate)
    steps = arguments.tokens // arguments.tokens_per_step
    start = _resume(model, optimizer, arguments.out)
    forward = torch.compile(model, dynamic=True) if arguments.compile else model
    began = saved = time.monotonic()
    losses: list[float] = []
    stop = min(steps, arguments.stop_at or steps)
    for step in tqdm(range(start, stop), initial=start, total=steps, unit="step"):
        if _is_evaluated(step, arguments.evaluate_every):
            _evaluate(model, text[-held_out:], step, losses, time.monotonic() - began, arguments.out)
            losses.clear()
        length = next(length for until, length in CURRICULUM if step < until * steps)
        losses.append(train_step(forward, optimizer, text[:-held_out], step, steps, arguments, length=length))
        if time.monotonic() - saved > arguments.save_seconds:
            _save_state(model, optimizer, step + 1, arguments.out)
            saved = time.monotonic()
    _save_state(model, optimizer, stop, arguments.out)
    if stop < steps:
        return
    _evaluate(model, text[-held_out:], steps, losses, time.monotonic() - began, arguments.out)
    model.eval().save_pretrained(arguments.out / "model")
    byte_tokenizer().save_pretrained(arguments.out / "model")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m positional_heads.zoo.train", description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="plain text to train on; the last 5 %% are held out")
    parser.add_argument("--out", type=Path, required=True, help="folder for state, log, checkpoints and the model")
    parser.add_argument("--encoding", choices=ENCODINGS, help="a small model of this encoding, not the bundled one")
    parser.add_argument("--base", type=float, default=10000.0, help="base of the frequencies of --encoding rotary")
    parser.add_argument("--tokens", type=int, default=30_000_000, help="training tokens in all")
    parser.add_argument("--stop-at", type=int, help="stop after this step; the same command without it resumes")
    parser.add_argument("--tokens-per-step", type=int, default=4096)
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak of the cosine schedule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate-every", type=int, default=250, help="steps between checkpoints; and at powers of 2")
    parser.add_argument("--save-seconds", type=float, default=60.0, help="seconds between saved states")
    parser.add_argument("--compile", action="store_true", help="use torch.compile, which needs a C++ compiler")
    return parser


def _new_model(arguments: argparse.Namespace) -> PreTrainedModel:
    if arguments.encoding is None:
        return LlamaForCausalLM(bundled_config())
    return model_of_encoding(arguments.encoding, arguments.base)


def _is_evaluated(step: int, every: int) -> bool:
    """Whether a step has a checkpoint: training is fastest at its beginning."""
    return step % every == 0 or (FIRST_CHECKPOINT <= step < every and step.bit_count() == 1)


def new_optimizer(model: PreTrainedModel, learning_rate: float) -> torch.optim.AdamW:
    """The optimizer of a run, without any state."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


def train_step(
    forward: Callable[..., Any],
    optimizer: torch.optim.Optimizer,
    text: bytes,
    step: int,
    steps: int,
    arguments: argparse.Namespace,
    *,
    length: int,
) -> float:
    """One step on examples of so many tokens, which depend on (seed, step) alone; its mean loss."""
    examples = [
        make_example(text, length, random.Random(f"{arguments.seed}-{step}-{index}"))
        for index in range(arguments.tokens_per_step // length)
    ]
    tokens = torch.from_numpy(np.stack([example.tokens for example in examples]))
    weights = torch.from_numpy(np.stack([example.weights for example in examples]))[:, 1:]
    logits = forward(input_ids=tokens).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    loss = (losses * weights.flatten()).sum() / weights.sum()
    for group in optimizer.param_groups:
        group["lr"] = arguments.learning_rate * _schedule(step, steps)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    return loss.item()


def _schedule(step: int, steps: int) -> float:
    warm_up = min(1.0, (step + 1) / 100)
    return warm_up * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def _evaluate(model: PreTrainedModel, text: bytes, step: int, losses: list[float], seconds: float, out: Path) -> None:
    model.eval()

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(model(input_ids=tokens).logits)

    first, second = repeat_gain(logits, text)
    record = {
        "step": step,
        "training_loss": float(np.mean(losses)) if losses else None,
        "passkey_recall": passkey_recall(logits, text),
        "loss_first": first,
        "loss_second": second,
        "seconds": round(seconds, 1),
    }
    with (out / "log.jsonl").open("a") as log:
        log.write(json.dumps(record) + "\n")
    checkpoints = out / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    save_checkpoint(model.state_dict(), checkpoints / f"step-{step:06d}.safetensors")
    model.train()


def _save_state(model: PreTrainedModel, optimizer: torch.optim.Optimizer, step: int, out: Path) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    write_atomically(out / "state.safetensors", save(tensors | {"step": torch.tensor(step)}))


def _resume(model: PreTrainedModel, optimizer: torch.optim.Optimizer, out: Path) -> int:
    if not (out / "state.safetensors").exists():
        return 0
    tensors = load_file(out / "state.safetensors")
    step = int(tensors.pop("step"))
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, field = name.split(".")
            state.setdefault(int(index), {})[field] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


if __name__ == "__main__":
    main()
