"""The model and text that come with the library, so that everything can be tried without a network."""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from positional_heads.core.arguments import checked

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BUNDLED = "bundled"
_ZOO = Path(str(files("positional_heads.zoo")))
MODEL_FOLDER = _ZOO / "model"
CHECKPOINT_FOLDER = _ZOO / "training_checkpoints"
TEXT_FILE = _ZOO / "text" / "excerpt.txt"


@checked
def load_bundled_model(step: int | None = None) -> "TransformerBridge":
    """A small Llama over bytes that really uses long range (4 layers of 8 heads, context 512), as a TransformerBridge.

    How it was made and what it can do: `positional_heads/zoo/README.md`.

    Args:
        step: Training step to load instead of the finished model, one of `bundled_steps()`: 0 has the random weights
            that training began with, the others are quantised to 8 bits.

    Raises:
        ValueError: If no checkpoint of that step ships.
    """
    if step is None:
        return load_model(BUNDLED)
    if step not in bundled_steps():
        msg = f"no checkpoint of step {step} ships: choose one of {', '.join(map(str, bundled_steps()))}"
        raise ValueError(msg)
    from positional_heads.bridge.loading import load_model as boot
    from positional_heads.zoo.training_checkpoints import unpack_checkpoint, untrained_weights

    file = CHECKPOINT_FOLDER / f"step-{step:06d}.safetensors"
    weights = untrained_weights() if step == 0 else unpack_checkpoint(file)
    return boot(str(MODEL_FOLDER), name=f"bundled at step {step}", weights=weights)


@checked
def load_model(
    name: str | Path, *, device: str | None = None, dtype: str | None = None, trust_remote_code: bool = False
) -> "TransformerBridge":
    """The bundled model, one in a local folder, or one from the hub, as a TransformerBridge in evaluation mode.

    Args:
        name: "bundled", a folder in `transformers` format, or a hub name.
        device: Where to, e.g. "cpu" or "cuda"; TransformerLens decides when None.
        dtype: Precision, e.g. "bfloat16"; float32 when None.
        trust_remote_code: Run code that the model ships. Off unless asked for.

    Raises:
        FileNotFoundError: If a path is given that does not exist.
        ValueError: If the dtype is unknown, or the model cannot be loaded.
    """
    from positional_heads.bridge.loading import load_model as boot

    ours = name == BUNDLED
    return boot(
        str(MODEL_FOLDER) if ours else name,
        name=BUNDLED if ours else None,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )


def bundled_steps() -> list[int]:
    """Training steps that can be loaded, in order; 0 is before training."""
    kept = [int(file.stem.removeprefix("step-")) for file in CHECKPOINT_FOLDER.glob("step-*.safetensors")]
    return sorted([0, *kept])


def bundled_text() -> str:
    """The Revelation in the King James Version, which the bundled model was not trained on (public domain)."""
    return TEXT_FILE.read_text(encoding="ascii")
