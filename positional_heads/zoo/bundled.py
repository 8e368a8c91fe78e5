"""The model and text that come with the library, so that everything can be tried without a network."""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_ZOO = Path(str(files("positional_heads.zoo")))
MODEL_FOLDER = _ZOO / "model"
CHECKPOINT_FOLDER = _ZOO / "training_checkpoints"
TEXT_FILE = _ZOO / "text" / "excerpt.txt"


def load_bundled_model(step: int | None = None) -> "TransformerBridge":
    """A small Llama over bytes that really uses long range (4 layers of 8 heads, context 512), as a TransformerBridge.

    How it was made and what it can do: `positional_heads/zoo/README.md`.

    Args:
        step: Training step to load instead of the finished model, one of `bundled_steps()`: 0 has the random weights
            that training began with, the others are quantised to 8 bits.

    Raises:
        ValueError: If no checkpoint of that step ships.
    """
    from positional_heads.host.loading import load_model

    if step is None:
        return load_model(str(MODEL_FOLDER), name="bundled")
    if step not in bundled_steps():
        msg = f"no checkpoint of step {step} ships: choose one of {', '.join(map(str, bundled_steps()))}"
        raise ValueError(msg)
    from positional_heads.zoo.checkpoints import unpack_checkpoint, untrained_weights

    file = CHECKPOINT_FOLDER / f"step-{step:06d}.safetensors"
    weights = untrained_weights() if step == 0 else unpack_checkpoint(file)
    return load_model(str(MODEL_FOLDER), name=f"bundled at step {step}", weights=weights)


def bundled_steps() -> list[int]:
    """Training steps that can be loaded, in order; 0 is before training."""
    kept = [int(file.stem.removeprefix("step-")) for file in CHECKPOINT_FOLDER.glob("step-*.safetensors")]
    return sorted([0, *kept])


def bundled_text() -> str:
    """The Revelation in the King James Version, which the bundled model was not trained on (public domain)."""
    return TEXT_FILE.read_text(encoding="ascii")
