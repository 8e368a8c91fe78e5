"""Train the small models of docs/small_models.md: three RoPE bases, four other encodings, and another text.

    python experiments/training.py kjv.txt runs                         # every run, in order; a killed one resumes
    python experiments/training.py kjv.txt runs rotary-1e3-0 none-1     # some runs

A run differs from the others in its encoding, base, seed or text alone: 6 million tokens, ten minutes on a core, with a
C++ compiler. Its log is kept in experiments/training, and the last checkpoint of one run, which longer.py begins with.
"""

import random
import shutil
from pathlib import Path

from run import parts_asked

from positional_heads.zoo import train

KEPT = Path(__file__).parent / "training"
BASES = {"1e3": 1e3, "1e4": 1e4, "1e6": 1e6}
SEEDS = (0, 1)
CONTINUED = "rotary-1e4-0"
RUNS = {
    f"rotary-{name}-{seed}": ["--encoding", "rotary", "--base", str(base), "--seed", str(seed)]
    for seed in SEEDS
    for name, base in BASES.items()
} | {
    f"{encoding}-{seed}": ["--encoding", encoding, "--seed", str(seed)]
    for seed in SEEDS
    for encoding in ("none", "learned", "alibi", "sinusoidal")
}
RUNS["passages-0"] = ["--encoding", "rotary", "--seed", "0"]
"""Base 1e4, on `passages` of the text."""
SHARED = ["--tokens", "6000000", "--tokens-per-step", "2048", "--evaluate-every", "250", "--compile"]


def passages(text: str, seed: int = 0) -> str:
    """The text in passages of 96 to 256 letters, in capitals and small letters by turns: near keys are more alike."""
    drawn, parts, start = random.Random(seed), [], 0
    while start < len(text):
        length = drawn.randint(96, 256)
        part = text[start : start + length]
        parts.append(part.lower() if len(parts) % 2 else part.upper())
        start += length
    return "".join(parts)


def main() -> None:
    """Train what is not finished, and keep its last checkpoint."""
    asked = parts_asked(__doc__, RUNS, text="plain text to train on", out="folder for the runs")
    text, changed = asked.text.read_text(encoding="utf-8"), asked.out / "passages.txt"
    asked.out.mkdir(parents=True, exist_ok=True)
    changed.write_text(passages(text), encoding="utf-8")
    for name in asked.parts:
        run = asked.out / name
        if not (run / "model").is_dir():  # written last
            read = changed if name.startswith("passages") else asked.text
            train.main(["--text", str(read), "--out", str(run), *SHARED, *RUNS[name]])
        KEPT.mkdir(exist_ok=True)
        if name == CONTINUED:
            shutil.copyfile(max((run / "checkpoints").iterdir()), KEPT / f"{name}.safetensors")
        shutil.copyfile(run / "log.jsonl", KEPT / f"{name}.jsonl")


if __name__ == "__main__":
    main()
