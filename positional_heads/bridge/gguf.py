"""Read a GGUF file through `transformers`: its configuration and tokenizer, and its weights as plain float32.

`transformers` takes what it knows from a GGUF file and drops the rest without a word, llama.cpp's settings of the
rotation among it. Here each of those is translated, found to be what the model has anyway, or refused by name.
"""

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from positional_heads.bridge.gguf_attention import translate_rotation
from positional_heads.bridge.gguf_header import GgufHeader, read_header
from positional_heads.bridge.kept_models import file_hash, kept_model, made_once
from positional_heads.bridge.provenance import ORIGIN
from positional_heads.core.logs import error_reason

logger = logging.getLogger(__name__)

NO_PARAMETERS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that are no parameters in `transformers`: they stretch wavelengths."""


def gguf_file(name_or_path: str | Path) -> Path | None:
    """The GGUF file that a name means: itself, or the only one of a folder that is no model otherwise; else None.

    Raises:
        FileNotFoundError: If it is called like a GGUF file, and there is none.
        ValueError: If a folder holds several.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        found = [] if (path / "config.json").exists() else _files_in(path)
        if len(found) > 1:
            msg = f"{path}: holds {len(found)} GGUF files, choose one: {', '.join(map(str, found))}"
            raise ValueError(msg)
        return found[0] if found else None
    if path.suffix.lower() != ".gguf":
        return None
    if not path.is_file():
        near = [file.name for file in _files_in(path.parent)] if path.parent.is_dir() else []
        msg = f"{path}: no such GGUF file" + (f"; {path.parent} holds {', '.join(near)}" if near else "")
        raise FileNotFoundError(msg)
    return path


def _files_in(folder: Path) -> list[Path]:
    """The GGUF files of a folder, in capitals or not."""
    return sorted(file for file in folder.iterdir() if is_gguf(file))


def is_gguf(place: str | Path) -> bool:
    """Whether a place is a GGUF file, and no folder or hub name."""
    return Path(place).suffix.lower() == ".gguf" and Path(place).is_file()


def refuse_without_package(what: str | Path) -> None:
    """Say which package is missing, if it is.

    Raises:
        ImportError: If `gguf` is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        msg = f"{what}: reading GGUF needs the package gguf: pip install 'positional-heads[gguf]'"
        raise ImportError(msg)


def gguf_configuration(file: Path) -> tuple[Any, Any]:
    """Configuration of the model in a GGUF file, and its tokenizer, None if it cannot be read; no weights are read.

    Raises:
        ImportError: If `gguf` is not installed.
        ValueError: If they cannot be read, or `transformers` cannot express the rotation.
    """
    from transformers import AutoConfig, AutoTokenizer

    refuse_without_package(file)
    header = read_header(file)
    try:
        config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    except Exception as error:
        raise ValueError(_reason(file, error)) from error
    for name in ("quantization_config", "_name_or_path"):
        config.__dict__.pop(name, None)
    try:
        translate_rotation(file, header, config)
    except ValueError as error:
        msg = f"{file}: {error}: load the model in transformers format instead"
        raise ValueError(msg) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except Exception as error:  # noqa: BLE001  whatever it is, the model can be scored on token ids
        logger.warning("%s: its tokenizer cannot be read (%s)", file, " ".join(str(error).split())[:200])
        tokenizer = None
    return config, tokenizer


def plain_folder(file: str | Path) -> Path:
    """The model in a GGUF file as a folder in `transformers` format, converted once and kept in the user's cache.

    Raises:
        ImportError: If `gguf` is not installed, and the model is not kept already.
        ValueError: If the file cannot be converted.
    """
    file = Path(file)
    sha256 = file_hash(file)
    if found := kept_model(sha256):
        return found
    refuse_without_package(file)
    header = read_header(file)
    size = 4 * sum(header.elements(name) for name in header.shapes)
    return made_once(sha256, str(file), size, partial(write_plain, file, sha256))


def write_plain(file: Path, sha256: str, folder: Path) -> None:
    """Write the model in a GGUF file to a folder in `transformers` format, in float32.

    Args:
        file: The GGUF file.
        sha256: Its hash, which the configuration then names.
        folder: An existing folder, empty.

    Raises:
        ImportError: If `gguf` is not installed.
        ValueError: If the file cannot be read, or not every number of it has its place in the model.
    """
    import transformers

    with _parsed_once():
        config, tokenizer = gguf_configuration(file)
        settings: dict[str, Any] = {"config": config, "gguf_file": file.name, "dtype": torch.float32}
        if hasattr(transformers, "GgufConfig"):  # newer ones keep 4 bits where they have a kernel for them
            settings["quantization_config"] = transformers.GgufConfig(dequantize=True)
        try:
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                str(file.parent), output_loading_info=True, **settings
            )
        except Exception as error:
            raise ValueError(_reason(file, error)) from error
    model, info = loaded
    header = read_header(file)
    _refuse_other_weights(file, header, model, info)
    model.hf_quantizer = None  # or it would refuse to be saved as what it is now, plain
    model.config.__dict__.pop("quantization_config", None)
    setattr(model.config, ORIGIN, {"storage": header.storage, "file": file.name, "sha256": sha256})
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


@contextmanager
def _parsed_once() -> Iterator[None]:
    """A block in which a file is parsed once: `transformers` does so for configuration, tokenizer and weights."""
    import gguf

    with patch.object(gguf, "GGUFReader", lru_cache(maxsize=1)(gguf.GGUFReader)):
        yield


def _reason(file: Path, error: Exception) -> str:
    return f"{file}: transformers cannot read this GGUF file: {error_reason(error, 300)}"


def _refuse_other_weights(file: Path, header: GgufHeader, model: Any, info: dict[str, Any]) -> None:
    """Refuse a model with numbers that are not in the file, or without some that are: both would go unnoticed."""
    missing = sorted({name for name, _ in model.named_parameters()} & set(info["missing_keys"]))
    if missing:
        msg = f"{file}: lacks {len(missing)} of the model's tensors ({', '.join(missing[:3])}), which would be random"
        raise ValueError(msg)
    tied = model.config.tie_word_embeddings
    held = [name for name in header.shapes if name not in NO_PARAMETERS and not (tied and name == "output.weight")]
    stored = sum(header.elements(name) for name in held)
    least = sum(one.numel() for one in model.parameters())
    most = sum({one.data_ptr(): one.numel() for one in model.state_dict().values()}.values())
    if not least <= stored <= max(least, most):
        msg = (
            f"{file}: holds {stored:,} numbers, and transformers makes a {type(model).__name__} of {least:,} of it, "
            "so that some would be dropped: load the model in transformers format instead"
        )
        raise ValueError(msg)
