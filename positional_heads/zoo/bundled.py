"""The model and text that come with the library, so that everything can be tried without a network."""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_ZOO = Path(str(files("positional_heads.zoo")))
MODEL_FOLDER = _ZOO / "model"
TEXT_FILE = _ZOO / "text" / "excerpt.txt"


def load_bundled_model() -> "TransformerBridge":
    """A small Llama over bytes that really uses long range (4 layers of 8 heads, context 512), as a TransformerBridge.

    How it was made and what it can do: `positional_heads/zoo/README.md`.
    """
    from positional_heads.host.loading import load_model

    return load_model(str(MODEL_FOLDER), name="bundled")


def bundled_text() -> str:
    """The end of the King James Version, which the bundled model was not trained on (public domain)."""
    return TEXT_FILE.read_text(encoding="ascii")
