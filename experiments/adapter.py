"""Train LoRA adapters for SmolLM2 on code, and compare its heads with an adapter on and off: docs/findings.md.

    python experiments/adapter.py runs                             # every part, in order; a finished one is kept
    python experiments/adapter.py runs trained-0 permuted-0        # some parts

Each adapter sees 77 thousand tokens of the bundled code, one sequence a step; what is held out is measured. Its
controls have the same numbers in other places: the entries of each matrix B are permuted, and once more, six times as
large, so that scores change about as much as in training. Adapters and profiles go to the folder, where a killed run
continues; tables of the comparisons of all are kept in experiments/adapter.
"""

import json
import random
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from run import HERE, SEED, SHUFFLES, parts_asked, sequences
from safetensors.torch import load_file, save_file
from transformer_lens.model_bridge import TransformerBridge

import positional_heads as ph
from positional_heads.bridge.gguf import is_gguf, plain_folder
from positional_heads.studies.extrapolation import text_losses
from positional_heads.zoo.real import smollm2_place

KEPT = HERE / "adapter"
OFF, WEIGHTS = "off", "adapter_model.safetensors"
SEEDS = (0, 1)
WAYS = {"trained": 0, "permuted": 1, "scaled": 6}
"""What is run, and by how much the permuted entries are multiplied."""
RUNS = {f"{way}-{seed}": (way, seed) for way in WAYS for seed in SEEDS}
TRAINED_ON, TEXTS = "code", ("code", "prose")
LENGTH, COUNT, HELD_OUT = 512, 8, 0.2
"""Tokens of a sequence, sequences that are measured of each text, and the last part of the code, which is held out."""
LORA = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
STEPS, WARM_UP, LEARNING_RATE, SAVED_EVERY = 150, 10, 1e-3, 5
COLUMNS = ["name", "rho_a", "rho_b", "change_p", "beats", "curve_distance", "pair_change", "slow_share"]
PROVENANCE = ("versions", "model", "data", "settings")


def pieces(model: TransformerBridge) -> tuple[list[torch.Tensor], dict[str, list[torch.Tensor]]]:
    """Sequences of code to train on, and those of each text that are measured."""
    code = [piece for piece in ph.cut_text(model, ph.bundled_text(TRAINED_ON), LENGTH) if len(piece) == LENGTH]
    kept = round(len(code) * (1 - HELD_OUT))
    held_out = random.Random(SEED).sample(code[kept:], COUNT)
    return code[:kept], {"code": held_out, "prose": sequences(model, "prose", LENGTH, COUNT)}


def trained(folder: Path, seed: int, texts: list[torch.Tensor]) -> None:
    """Train one adapter; its state is saved every few steps, and the adapter itself last."""
    import peft
    from transformers import AutoModelForCausalLM

    place = smollm2_place()
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_pretrained(plain_folder(place) if is_gguf(place) else place)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **LORA)).train()
    own = {name: one for name, one in model.named_parameters() if one.requires_grad}
    optimizer = torch.optim.AdamW(own.values(), lr=LEARNING_RATE)
    order = random.Random(seed).sample(texts, STEPS)
    state, losses = folder / "state.pt", []
    if state.is_file():
        saved = torch.load(state)
        model.load_state_dict(saved["weights"], strict=False)
        optimizer.load_state_dict(saved["optimizer"])
        losses = saved["losses"]
    for step in range(len(losses), STEPS):
        rate = LEARNING_RATE * min((step + 1) / WARM_UP, (STEPS - step) / (STEPS - WARM_UP))
        for group in optimizer.param_groups:
            group["lr"] = rate
        began = time.process_time()
        loss = model(input_ids=order[step][None], labels=order[step][None]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(own.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append({"step": step, "loss": loss.item(), "cpu_seconds": time.process_time() - began})
        if (step + 1) % SAVED_EVERY == 0 or step + 1 == STEPS:
            weights = {name: one.detach() for name, one in own.items()}
            torch.save({"weights": weights, "optimizer": optimizer.state_dict(), "losses": losses}, folder / "new.pt")
            (folder / "new.pt").replace(state)
            say(f"{folder.name}: step {step + 1}, loss {fmean(one['loss'] for one in losses[-10:]):.3f}")
    model.save_pretrained(folder / "adapter")
    pd.DataFrame(losses).to_csv(folder / "losses.csv", index=False, float_format="%.5g")


def permuted(folder: Path, seed: int, adapter: Path, times: float) -> None:
    """Write a control of an adapter: the entries of each B in random order, so that no direction is learned."""
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(adapter / WEIGHTS)
    for name, one in weights.items():
        if ".lora_B." in name:
            weights[name] = times * one.flatten()[torch.randperm(one.numel(), generator=generator)].view_as(one)
    (folder / "adapter").mkdir(exist_ok=True)
    save_file(weights, folder / "adapter" / WEIGHTS, {"format": "pt"})
    (folder / "adapter" / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())


def measured(folder: Path, texts: dict[str, list[torch.Tensor]]) -> None:
    """Save the profiles of the model with the folder's adapter, or without one, and its losses, the losses last."""
    has_one = folder.name in RUNS
    model = ph.load_model("smollm2", adapter=folder / "adapter" if has_one else None)
    if has_one:
        model.original_model.adapter_folder = folder.name  # not the folder on this machine
    settings = {"retrieval": None, "null_repeats": SHUFFLES, "batch_size": 4, "seed": SEED}
    for text, rows in texts.items():
        file = folder / f"{text}.safetensors"
        if not file.is_file():
            ph.profile_heads(model, rows, checkpoint=folder / f"unfinished-{text}", **settings).save(file)
    losses = {text: text_losses(model, rows, 1, 1).tolist() for text, rows in texts.items()}
    (folder / "loss.json").write_text(json.dumps(losses))


def slow_part(profile: ph.HeadProfile) -> float:
    """Share of the slow half of the pairs in the squared mean contributions, every distance alike; mean over heads."""
    width = (profile.edges[1:] - profile.edges[:-1]).double()
    size = (profile.pairs.contribution**2 * width).sum(-1)
    return float((size[..., size.shape[-1] // 2 :].sum(-1) / size.sum(-1)).mean())


def tables(out: Path) -> None:
    """Keep how the heads and the losses of each finished run differ from those without an adapter."""
    finished = [name for name in (OFF, *RUNS) if (out / name / "loss.json").is_file()]
    losses = {name: json.loads((out / name / "loss.json").read_text()) for name in finished}
    steps = [pd.read_csv(file).assign(run=file.parent.name) for file in sorted(out.glob("trained-*/losses.csv"))]
    heads, told = [], {}
    for text in TEXTS:
        before = ph.HeadProfile.load(out / OFF / f"{text}.safetensors")
        for name in finished[1:]:
            after = ph.HeadProfile.load(out / name / f"{text}.safetensors")
            found = ph.compare(before, after, names=[OFF, name])
            heads.append(found.to_frame()[COLUMNS].assign(run=name, text=text))
            told[f"{name}, {text}"] = {
                "verdict": found.verdict,
                "rho": found.agreement["rho"]._asdict(),
                **{pairs: share._asdict() for pairs, share in found.pair_shares.items()},
                "differing": found.provenance["differing"],
            }
        told[f"{OFF}, {text}"] = {name: before.provenance[name] for name in PROVENANCE} | {"slow": slow_part(before)}
    settings = {**LORA, "steps": STEPS, "warm_up": WARM_UP, "learning_rate": LEARNING_RATE, "controls": WAYS}
    told["adapter"] = {"peft": version("peft"), "text": TRAINED_ON, "length": LENGTH, **settings}
    kept = KEPT if len(finished) > len(RUNS) else out / "tables"  # of some runs, they do not replace those of all
    kept.mkdir(exist_ok=True)
    pd.concat(heads).to_csv(kept / "heads.csv", index=False, float_format="%.4g")
    pd.concat(steps).to_csv(kept / "training.csv", index=False)
    (kept / "losses.json").write_text(json.dumps(losses) + "\n")
    (kept / "comparisons.json").write_text(json.dumps(told, indent=1) + "\n")


def say(words: str) -> None:
    """Say something at once."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def main() -> None:
    """Train and measure what is not finished, then compare every run with the model without an adapter."""
    asked = parts_asked(__doc__, RUNS, runs="folder for adapters and profiles")
    out, chosen = asked.runs, asked.parts
    texts, held_out = pieces(ph.load_model("smollm2"))
    for name in (OFF, *chosen):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        way, seed = RUNS.get(name, ("", 0))
        source = out / f"trained-{seed}"
        if way and not (source / "losses.csv").is_file():
            source.mkdir(exist_ok=True)
            trained(source, seed, texts)
        if way and WAYS[way]:
            permuted(folder, seed, source / "adapter", WAYS[way])
        if not (folder / "loss.json").is_file():
            measured(folder, held_out)
            say(f"{name}: measured")
    tables(out)


if __name__ == "__main__":
    main()
