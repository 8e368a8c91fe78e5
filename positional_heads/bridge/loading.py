"""Load a model as a TransformerBridge: from a local folder or a hub name, with an adapter, or one that is loaded."""

import json
import logging
import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from positional_heads.bridge.adapters import CONFIGURATION, base_of, checked_adapter, is_adapter, with_adapter
from positional_heads.bridge.checkpoints import (
    BOOTING,
    check_quantization_config,
    configuration_translated,
    has_tokenizer,
    installing_refused,
    quantization_of,
    stand_in_tokenizer,
    stated_quantization,
    weights_read,
)
from positional_heads.bridge.loaded_models import execution_device, probe_logits, refuse_other_logits
from positional_heads.core.logs import error_reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

logger = logging.getLogger(__name__)

DTYPES = ("float32", "float16", "bfloat16")


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
    adapter: str | os.PathLike[str] | None = None,
    device: str | None = None,
    device_map: "str | Mapping[str, str | int] | None" = None,
    offload_folder: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    quantization_config: Any = None,
    trust_remote_code: bool = False,
) -> "TransformerBridge":
    """Boot a model through TransformerLens, in evaluation mode. No package is installed.

    Old or ignored forms of rotary settings in config.json are translated to what `transformers` reads, and logged. A
    folder without a tokenizer gives a model without one, which takes token ids. A bridge of quantised weights must give
    the logits that `transformers` gives.

    Args:
        name_or_path: A local folder in `transformers` format, or a hub name; or the folder of an adapter.
        name: Its name in results; its own when None.
        weights: A state dict that replaces its own weights.
        adapter: Folder of a LoRA adapter, which is merged into weights that are not quantised.
        device: Device, e.g. "cpu" or "cuda"; chosen by TransformerLens when None.
        device_map: Where each part of a model that needs several devices goes: "auto", "balanced", or a table from
            names of modules to devices, as in `transformers`; one device when None.
        offload_folder: Folder for weights on "disk" that cannot be read from the checkpoint itself.
        dtype: Precision, e.g. "bfloat16"; when None that of quantised weights, else float32.
        quantization_config: Quantise the weights while they are loaded, by a configuration of `transformers`.
        trust_remote_code: Run code that comes with the model.

    Raises:
        FileNotFoundError: If it is a path that does not exist.
        ValueError: If the dtype is unknown, device and device map are both given, or the model cannot be loaded.
        TypeError: If the configuration of quantisation is of another type.
        ImportError: If a package is missing.
    """
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.utilities import get_device

    source, adapter = _base_and_adapter(name_or_path, adapter)
    check_dtype(dtype)
    _check_places(device, device_map)
    settings: dict[str, Any] = {"trust_remote_code": trust_remote_code} if trust_remote_code else {}
    settings |= {"device": device} if device_map is None else {"device_map": device_map}
    without_tokenizer = Path(source).is_dir() and not has_tokenizer(Path(source))
    if without_tokenizer:
        logger.warning("%s: no tokenizer in this folder, so the model takes token ids and no text", source)
        settings["tokenizer"] = stand_in_tokenizer()
    check_quantization_config(quantization_config)
    reading = {"quantization_config": quantization_config, "offload_folder": offload_folder}
    reading = {key: value for key, value in reading.items() if value is not None}
    own_logits: list[Tensor] = []

    def prepare(model: Any) -> Any:
        quantized = getattr(model, "hf_quantizer", None) is not None
        if adapter is not None:
            model = with_adapter(model, adapter, merge=not quantized)
        if quantized:
            model = model.eval() if device_map is not None else model.eval().to(device or get_device())
            own_logits.append(probe_logits(model, execution_device(model)))
        return model

    try:
        precision = _precision(source, dtype)
        with BOOTING, configuration_translated(source), installing_refused(source):  # noqa: SIM117  short enough
            with weights_read(source, prepare, **reading):
                bridge = TransformerBridge.boot_transformers(source, dtype=getattr(torch, precision), **settings)
    except Exception as error:
        msg = f"the model {name or source!r} cannot be loaded: {error_reason(error)}"
        raise ValueError(msg) from error
    if without_tokenizer:
        bridge.tokenizer = None
    if weights is not None:
        _replace_weights(bridge, weights)
    if name is not None:
        bridge.cfg.model_name = name
    own: Any = bridge.original_model
    if adapter is not None:
        own.adapter_folder = str(adapter)  # for the provenance of results
    if quantization_config is not None:
        own.quantized_while_loading = stated_quantization(quantization_config)  # likewise
    if str(bridge.cfg.device) == "meta":  # its embeddings are on disk
        bridge.cfg.device = execution_device(bridge.original_model)
    for logits in own_logits:
        refuse_other_logits(bridge.eval(), logits)
    return bridge.eval()


def _check_places(device: str | None, device_map: "str | Mapping[str, str | int] | None") -> None:
    """Refuse a device beside a device map, and a map of nothing.

    Raises:
        ValueError: If it is one of these.
    """
    if device is not None and device_map is not None:
        msg = f"device {device!r} and device_map {device_map!r} are both given: leave one of them out"
        raise ValueError(msg)
    if device_map is not None and not device_map:
        msg = f"device_map {device_map!r} is empty: give 'auto', or a table from names of modules to devices"
        raise ValueError(msg)


def _precision(source: str, dtype: str | None) -> str:
    """The precision asked for, or that of quantised weights.

    Raises:
        ValueError: If torchao's weights compute in one and the rest in another.
    """
    method, own = quantization_of(source)
    if method == "torchao" and dtype not in {None, own}:
        msg = f"its weights are quantised to compute in {own}, not in {dtype}: leave dtype out"
        raise ValueError(msg)
    return dtype or own or "float32"


def _base_and_adapter(
    name_or_path: str | os.PathLike[str], adapter: str | os.PathLike[str] | None
) -> tuple[str, Path | None]:
    """What to load, and the adapter to put onto it: the one given, or the folder itself if it is one."""
    folder = Path(name_or_path).expanduser()
    if adapter is None and is_adapter(folder):
        adapter = folder
        name_or_path = base_of(checked_adapter(folder))
    source, found = _folder_or_name(name_or_path), None if adapter is None else checked_adapter(adapter)
    if is_adapter(Path(source)):
        msg = (
            f"{source}: holds an {CONFIGURATION}, so `transformers` would load another model and that adapter: give "
            "the base model's own folder"
        )
        raise ValueError(msg)
    return source, found


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

    source, _ = _base_and_adapter(name_or_path, None)
    is_folder = Path(source).is_dir()
    if is_folder:
        _refuse_broken_files(Path(source))
    settings = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    part = "configuration"
    try:
        with BOOTING, configuration_translated(source):
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
    if not has_tokenizer(folder):
        msg = f"{folder}: no tokenizer in this folder, so no text can be cut into tokens; add the tokenizer's files"
        raise ValueError(msg)


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
