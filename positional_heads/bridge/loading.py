"""From a name to a model: the bundled one, a local folder, or a hub name, as a TransformerBridge."""

import copy
import json
import logging
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from positional_heads.bridge.configuration import mended

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
"""Held while a model boots, since what is patched for as long belongs to the whole process."""


def check_dtype(dtype: str | None) -> None:
    """Refuse a precision that models are not loaded in.

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
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> "TransformerBridge":
    """Boot a model through TransformerLens, in evaluation mode. Nothing is ever installed.

    What its config.json says of its rotation in an older or an unread form is put as `transformers` reads it, and
    logged. A folder without a tokenizer gives a model without one: it takes token ids.

    Args:
        name_or_path: A local folder in `transformers` format, or a hub name.
        name: What to call it in results; its own name when None.
        weights: A state dict to load into the model in place of its own weights.
        device: Where to, e.g. "cpu" or "cuda"; TransformerLens decides when None.
        dtype: Precision, e.g. "bfloat16"; float32 when None.
        trust_remote_code: Run code that the model ships. Off unless asked for.

    Raises:
        FileNotFoundError: If a path is given that does not exist.
        ValueError: If the dtype is unknown, or the model cannot be loaded.
    """
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    given = _folder_or_name(name_or_path)
    check_dtype(dtype)
    settings: dict[str, Any] = {"trust_remote_code": trust_remote_code} if trust_remote_code else {}
    speechless = Path(given).is_dir() and not _has_tokenizer(Path(given))
    if speechless:
        logger.warning("%s: no tokenizer in this folder, so the model takes token ids and no text", given)
        settings["tokenizer"] = _stand_in_tokenizer()
    try:
        with _BOOTING, _mended_configuration(given), _nothing_installed(given), _every_tensor_found(given):
            bridge = TransformerBridge.boot_transformers(
                given, device=device, dtype=getattr(torch, dtype or "float32"), **settings
            )
    except Exception as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        msg = f"the model {given!r} cannot be loaded: {reason}"
        raise ValueError(msg) from error
    if speechless:
        bridge.tokenizer = None
    if weights is not None:
        _replace_weights(bridge, weights)
    if name is not None:
        bridge.cfg.model_name = name
    return bridge.eval()


@contextmanager
def _mended_configuration(given: str) -> Iterator[None]:
    """While a model boots, `transformers` reads its configuration as mended, and reads others as they are."""
    from transformers import PretrainedConfig

    own = PretrainedConfig.get_config_dict
    raw, _ = own(given)
    config, told = mended(raw, quantized="quantization_config" in raw and _quantized(given))
    for change in told:
        logger.warning("%s: %s", given, change)

    def reading(cls: Any, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        read, rest = own.__func__(cls, pretrained_model_name_or_path, **kwargs)  # type: ignore[attr-defined]
        return (copy.deepcopy(config) if str(pretrained_model_name_or_path) == given else read), rest

    with patch.object(PretrainedConfig, "get_config_dict", classmethod(reading)):
        yield


@contextmanager
def _nothing_installed(given: str) -> Iterator[None]:
    """While a model boots, no process may install packages: TransformerLens would, and with torchvision another torch.

    It goes on without, and so without the processor of a vision-language checkpoint, which text does not need.
    """
    own = subprocess.Popen.__init__

    def starting(self: Any, args: Any, *rest: Any, **kwargs: Any) -> None:
        words = args.split() if isinstance(args, str) else [str(word) for word in args]
        if "install" in words:
            wanted = ", ".join(word for word in words[words.index("install") + 1 :] if not word.startswith("-"))
            logger.warning(
                "%s: loaded without its image processor, which text does not need: it asks for %s", given, wanted
            )
            msg = f"loading a model installs nothing: {' '.join(words)}"
            raise PermissionError(msg)
        own(self, args, *rest, **kwargs)

    with patch.object(subprocess.Popen, "__init__", starting):
        yield


@contextmanager
def _every_tensor_found(given: str) -> Iterator[None]:
    """A block at whose end it is an error that `transformers` filled a tensor with noise, the checkpoint lacking it."""
    from transformers import PreTrainedModel

    own = PreTrainedModel.from_pretrained
    missing: list[str] = []

    def loading(cls: Any, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        told = kwargs.pop("output_loading_info", False)
        model, found = own.__func__(  # type: ignore[attr-defined]
            cls, pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        if str(pretrained_model_name_or_path) == given:
            missing[:] = sorted({name for name, _ in model.named_parameters()}.intersection(found["missing_keys"]))
        return (model, found) if told else model

    with patch.object(PreTrainedModel, "from_pretrained", classmethod(loading)):
        yield
    if missing:
        msg = (
            f"its files lack {len(missing)} of the model's tensors ({', '.join(missing[:3])}), which would be random: "
            "complete the checkpoint, or correct its config.json"
        )
        raise ValueError(msg)


def _quantized(given: str) -> bool:
    """Whether a checkpoint's tensors are quantised, by their names and types; True where that cannot be told."""
    from transformers.utils import cached_file

    def file(name: str) -> str | None:
        return cached_file(given, name, _raise_exceptions_for_missing_entries=False)

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
    """What TransformerLens is given where there is none, and loses again: it boots no model without."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"?": 0}, unk_token="?")), unk_token="?")


def _has_tokenizer(folder: Path) -> bool:
    return any(mark in file.name for file in folder.iterdir() for mark in TOKENIZER_FILES)


def _replace_weights(bridge: Any, weights: "Mapping[str, Tensor]") -> None:
    """Bridges wrap modules, so that their parameters go by the original names with a component in between."""
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
    """What to load: a folder that exists, without a trailing slash, or a hub name."""
    given = os.fspath(name_or_path)
    path = Path(given).expanduser()
    looks_local = path.is_absolute() or given.startswith(".") or given.count("/") > 1
    if looks_local and not path.is_dir():
        msg = f"{given}: no such model folder; give an existing folder, a hub name, or 'bundled'"
        raise FileNotFoundError(msg)
    if path.is_dir() and not (path / "config.json").exists():
        msg = f"{given}: no config.json in it; give a folder written by save_pretrained"
        raise FileNotFoundError(msg)
    return str(path) if path.is_dir() else given
