"""Blocks inside which `transformers` reads a checkpoint as its authors meant it, completely, and installs nothing."""

import copy
import json
import logging
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

from positional_heads.bridge.configuration import translated_configuration

logger = logging.getLogger(__name__)

QUANTIZED_NAMES = ("scale", "qweight", "qzeros", "absmax", "quant", "packed", "blocks")
PLAIN_TYPES = {"F64", "F32", "F16", "BF16", "I64", "BOOL"}
TOKENIZER_FILES = ("tokenizer", "vocab", "spiece", "merges", "tekken", "tiktoken", ".model")
PACKAGES = {"torchao": "torchao", "quanto": "optimum"}
"""What has to be importable for a method of quantisation; `transformers` names what others need."""
BOOTING = threading.Lock()
"""Held while a model boots: the patches that booting needs affect the whole process."""


@contextmanager
def configuration_translated(source: str) -> Iterator[None]:
    """A block in which `transformers` reads the translated configuration of this model, and others unchanged."""
    from transformers import PretrainedConfig

    original = PretrainedConfig.get_config_dict
    raw, _ = original(source)
    config, changes = translated_configuration(raw, quantized="quantization_config" in raw and is_quantized(source))
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
def installing_refused(source: str) -> Iterator[None]:
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
def weights_read(source: str, prepare: Callable[[Any], Any] | None = None, **settings: Any) -> Iterator[None]:
    """A block in which the weights of this model are read with more settings, and changed before a bridge gets them.

    It raises at its end if the checkpoint lacked tensors: `transformers` fills them with noise.

    Args:
        source: The checkpoint.
        prepare: What to do with the model that was read; returns the one to use.
        settings: More arguments of `from_pretrained`.
    """
    from transformers import PreTrainedModel

    original = PreTrainedModel.from_pretrained
    missing: list[str] = []

    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        return_info = kwargs.pop("output_loading_info", False)
        asked = str(pretrained_model_name_or_path) == source
        model, info = original.__func__(  # type: ignore[attr-defined]
            cls, pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs, **(settings if asked else {})
        )
        if asked:
            missing[:] = sorted({name for name, _ in model.named_parameters()}.intersection(info["missing_keys"]))
            model = model if prepare is None or missing else prepare(model)
        return (model, info) if return_info else model

    with patch.object(PreTrainedModel, "from_pretrained", classmethod(from_pretrained)):
        yield
    if missing:
        msg = (
            f"its files lack {len(missing)} of the model's tensors ({', '.join(missing[:3])}), which would be random: "
            "complete the checkpoint, or correct its config.json"
        )
        raise ValueError(msg)


def check_quantization_config(config: Any) -> None:
    """Refuse what is no configuration of quantisation, or one whose package is missing.

    Raises:
        TypeError: If it is of another type.
        ImportError: If a package is missing.
    """
    if config is None:
        return
    from transformers.utils.quantization_config import QuantizationConfigMixin

    if not isinstance(config, QuantizationConfigMixin):
        msg = (
            f"quantization_config must be one of transformers' configurations, e.g. TorchAoConfig(...), got a "
            f"{type(config).__name__}"
        )
        raise TypeError(msg)
    _refuse_missing_package(str(getattr(config.quant_method, "value", config.quant_method)))


def stated_quantization(config: Any) -> Any:
    """A configuration of quantisation as JSON, to be repeated; in words where it cannot be."""
    try:
        return json.loads(config.to_json_string(use_diff=False))
    except (TypeError, ValueError, AttributeError):
        return repr(config)


def _refuse_missing_package(method: str) -> None:
    package = PACKAGES.get(method)
    if package is not None and find_spec(package) is None:
        msg = f"weights quantised by {method} need it installed: pip install 'positional-heads[quantized]'"
        raise ImportError(msg)


def quantization_of(source: str) -> tuple[str | None, str | None]:
    """How the weights of a checkpoint are quantised, and the precision that they compute in; None if they are not.

    Raises:
        ImportError: If their package is missing.
    """
    from transformers import PretrainedConfig

    raw, _ = PretrainedConfig.get_config_dict(source)
    if "quantization_config" not in raw or not is_quantized(source):
        return None, None
    method = str(raw["quantization_config"].get("quant_method"))
    _refuse_missing_package(method)
    return method, str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")


def is_quantized(source: str) -> bool:
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


def stand_in_tokenizer() -> Any:
    """A tokenizer for booting only: TransformerLens boots no model without one."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"?": 0}, unk_token="?")), unk_token="?")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has files of a tokenizer."""
    return any(mark in file.name for file in folder.iterdir() for mark in TOKENIZER_FILES)


def tokenizer_of(source: str) -> Any:
    """The tokenizer in a folder or in the hub's cache; None where there is none. Nothing is downloaded."""
    from transformers import AutoTokenizer

    folder = Path(source)
    if folder.is_dir() and not has_tokenizer(folder):
        return None
    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError):
        return None
