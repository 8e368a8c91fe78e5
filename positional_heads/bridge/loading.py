"""Load a model as a TransformerBridge, from a local folder or a hub name."""

import copy
import json
import logging
import os
import subprocess
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from positional_heads.bridge.configuration import translated_configuration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

logger = logging.getLogger(__name__)

DTYPES = ("float32", "float16", "bfloat16")
TOKENIZER_FILES = ("tokenizer", "vocab", "spiece", "merges", "tekken", "tiktoken", ".model")
QUANTIZED_NAMES = ("scale", "qweight", "qzeros", "absmax", "quant", "packed", "blocks")
PLAIN_TYPES = {"F64", "F32", "F16", "BF16", "I64", "BOOL"}
_BOOTING = threading.Lock()
"""Held while a model boots: the patches that booting needs affect the whole process."""


def check_dtype(dtype: str | None) -> None:
    """Refuse a precision that models cannot be loaded in.

    Raises:
        ValueError: If it is unknown.
    """
    if dtype is not None and dtype not in DTYPES:
        msg = f"dtype {dtype!r} is unknown: choose one of {', '.join(DTYPES)}"
        raise ValueError(msg)


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    name: str | None = None,
    weights: "Mapping[str, Tensor] | None" = None,
    device: str | None = None,
    device_map: "str | Mapping[str, str | int] | None" = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> "TransformerBridge":
    """Boot a model through TransformerLens, in evaluation mode. No package is installed.

    Old or ignored forms of rotary settings in config.json are translated to what `transformers` reads, and logged. A
    folder without a tokenizer gives a model without one, which takes token ids.

    Args:
        name_or_path: A local folder in `transformers` format, or a hub name.
        name: Its name in results; its own when None.
        weights: A state dict that replaces its own weights.
        device: Device, e.g. "cpu" or "cuda"; chosen by TransformerLens when None.
        device_map: Where each part of a model that needs several devices goes: "auto", "balanced", or a table from
            names of modules to devices, as in `transformers`; one device when None.
        dtype: Precision, e.g. "bfloat16"; float32 when None.
        trust_remote_code: Run code that comes with the model.

    Raises:
        FileNotFoundError: If it is a path that does not exist.
        ValueError: If the dtype is unknown, device and device map are both given, or the model cannot be loaded.
    """
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    source = _folder_or_name(name_or_path)
    check_dtype(dtype)
    if device is not None and device_map is not None:
        msg = f"device {device!r} and device_map {device_map!r} are both given: leave one of them out"
        raise ValueError(msg)
    settings: dict[str, Any] = {"trust_remote_code": trust_remote_code} if trust_remote_code else {}
    settings |= {"device": device} if device_map is None else {"device_map": device_map}
    without_tokenizer = Path(source).is_dir() and not _has_tokenizer(Path(source))
    if without_tokenizer:
        logger.warning("%s: no tokenizer in this folder, so the model takes token ids and no text", source)
        settings["tokenizer"] = _stand_in_tokenizer()
    try:
        with _BOOTING, _configuration_translated(source), _installing_refused(source), _missing_tensors_refused(source):
            bridge = TransformerBridge.boot_transformers(source, dtype=getattr(torch, dtype or "float32"), **settings)
    except Exception as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        msg = f"the model {source!r} cannot be loaded: {reason}"
        raise ValueError(msg) from error
    if without_tokenizer:
        bridge.tokenizer = None
    if weights is not None:
        _replace_weights(bridge, weights)
    if name is not None:
        bridge.cfg.model_name = name
    return bridge.eval()


def load_configuration(name_or_path: str | os.PathLike[str], *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Configuration and tokenizer of a model in a folder, or in the hub's cache: no weights, and no download.

    Args:
        name_or_path: As in `load_model`.
        trust_remote_code: Run code that comes with the model.

    Raises:
        FileNotFoundError: If it is a path that does not exist.
        ValueError: If they are not on this machine, or cannot be read.
    """
    from transformers import AutoConfig, AutoTokenizer

    source = _folder_or_name(name_or_path)
    is_folder = Path(source).is_dir()
    if is_folder:
        _refuse_broken_files(Path(source))
    settings = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    part = "configuration"
    try:
        with _BOOTING, _configuration_translated(source):
            config = AutoConfig.from_pretrained(source, **settings)
            part = "tokenizer"
            return config, AutoTokenizer.from_pretrained(source, **settings)
    except Exception as error:
        reason = textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__
        if is_folder:
            msg = f"the {part} in {source} cannot be read: {reason}"
            raise ValueError(msg) from error
        msg = (
            f"configuration and tokenizer of {source!r} cannot be read from this machine ({reason}): give a folder, or "
            f"download them first, `hf download {source} --include '*.json' 'tokenizer*'`"
        )
        raise ValueError(msg) from error


def _refuse_broken_files(folder: Path) -> None:
    """Name what is missing from a folder, or not JSON, where `transformers` says something else."""
    for file in sorted(folder.glob("*.json")):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:  # noqa: PERF203  a few files
            msg = f"{file}: not JSON ({error})"
            raise ValueError(msg) from error
    if not _has_tokenizer(folder):
        msg = f"{folder}: no tokenizer in this folder, so no text can be cut into tokens; add the tokenizer's files"
        raise ValueError(msg)


@contextmanager
def _configuration_translated(source: str) -> Iterator[None]:
    """A block in which `transformers` reads the translated configuration of this model, and others unchanged."""
    from transformers import PretrainedConfig

    original = PretrainedConfig.get_config_dict
    raw, _ = original(source)
    config, changes = translated_configuration(raw, quantized="quantization_config" in raw and _is_quantized(source))
    for change in changes:
        logger.warning("%s: %s", source, change)

    def get_config_dict(
        cls: Any, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        read, rest = original.__func__(cls, pretrained_model_name_or_path, **kwargs)  # type: ignore[attr-defined]
        return (copy.deepcopy(config) if str(pretrained_model_name_or_path) == source else read), rest

    with patch.object(PretrainedConfig, "get_config_dict", classmethod(get_config_dict)):
        yield


@contextmanager
def _installing_refused(source: str) -> Iterator[None]:
    """A block in which no process may install packages.

    TransformerLens would install the image processor of a vision-language checkpoint, and torchvision with another
    torch. If that is refused, it boots the model without, which is enough for text.
    """
    original = subprocess.Popen.__init__

    def start(self: Any, args: Any, *rest: Any, **kwargs: Any) -> None:
        words = args.split() if isinstance(args, str) else [str(word) for word in args]
        if "install" in words:
            packages = ", ".join(word for word in words[words.index("install") + 1 :] if not word.startswith("-"))
            logger.warning(
                "%s: loaded without its image processor, which text does not need: it asks for %s", source, packages
            )
            msg = f"loading a model installs nothing: {' '.join(words)}"
            raise PermissionError(msg)
        original(self, args, *rest, **kwargs)

    with patch.object(subprocess.Popen, "__init__", start):
        yield


@contextmanager
def _missing_tensors_refused(source: str) -> Iterator[None]:
    """A block that raises at its end if the checkpoint lacked tensors: `transformers` fills them with noise."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.from_pretrained
    missing: list[str] = []

    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        return_info = kwargs.pop("output_loading_info", False)
        model, info = original.__func__(  # type: ignore[attr-defined]
            cls, pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        if str(pretrained_model_name_or_path) == source:
            missing[:] = sorted({name for name, _ in model.named_parameters()}.intersection(info["missing_keys"]))
        return (model, info) if return_info else model

    with patch.object(PreTrainedModel, "from_pretrained", classmethod(from_pretrained)):
        yield
    if missing:
        msg = (
            f"its files lack {len(missing)} of the model's tensors ({', '.join(missing[:3])}), which would be random: "
            "complete the checkpoint, or correct its config.json"
        )
        raise ValueError(msg)


def _is_quantized(source: str) -> bool:
    """Whether a checkpoint's tensors are quantised, by their names and types; True if they cannot be read."""
    from transformers.utils import cached_file

    def file(name: str) -> str | None:
        return cached_file(source, name, _raise_exceptions_for_missing_entries=False)

    if index := file("model.safetensors.index.json"):
        names = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        return any(mark in name for name in names for mark in QUANTIZED_NAMES)
    if weights := file("model.safetensors"):
        with Path(weights).open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        header.pop("__metadata__", None)
        return any(one["dtype"] not in PLAIN_TYPES for one in header.values())
    return True


def _stand_in_tokenizer() -> Any:
    """A tokenizer for booting only: TransformerLens boots no model without one."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"?": 0}, unk_token="?")), unk_token="?")


def _has_tokenizer(folder: Path) -> bool:
    return any(mark in file.name for file in folder.iterdir() for mark in TOKENIZER_FILES)


def _replace_weights(bridge: Any, weights: "Mapping[str, Tensor]") -> None:
    """Copy weights into the model. A bridge wraps modules, which adds a component to the names of their parameters."""
    own = {
        name.replace("_original_component.", ""): tensor for name, tensor in bridge.original_model.named_parameters()
    }
    added = {name for name in own.keys() - weights.keys() if not own[name].any()}  # biases of zero, which bridges add
    if own.keys() - added != weights.keys():
        msg = f"weights do not fit the model: {sorted((own.keys() - added) ^ weights.keys())[:3]} are on one side only"
        raise ValueError(msg)
    for name, tensor in weights.items():
        own[name].data.copy_(tensor)


def _folder_or_name(name_or_path: str | os.PathLike[str]) -> str:
    """An existing folder, without a trailing slash, or a hub name."""
    source = os.fspath(name_or_path)
    path = Path(source).expanduser()
    looks_local = path.is_absolute() or source.startswith(".") or source.count("/") > 1
    if looks_local and not path.is_dir():
        msg = f"{source}: no such model folder; give an existing folder, a hub name, or 'bundled'"
        raise FileNotFoundError(msg)
    if path.is_dir() and not (path / "config.json").exists():
        msg = f"{source}: no config.json in it; give a folder written by save_pretrained"
        raise FileNotFoundError(msg)
    return str(path) if path.is_dir() else source
