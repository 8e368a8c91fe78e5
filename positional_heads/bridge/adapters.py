"""LoRA adapters in PEFT's format: a small folder that changes the weights of a base model.

An adapter is merged into plain weights, which are then the model's own. Quantised weights would be rounded by that, so
there it stays beside them. Only safetensors are read: a pickle runs what its author put into it.
"""

import json
import logging
import os
import re
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from positional_heads.bridge.provenance import ORIGIN

CONFIGURATION, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PRECISION = re.compile(r"[.\-_](i?q\d\w*|bf16|f?p?16|f?p?32)$")
"""What the name of a GGUF file adds to that of its model."""

logger = logging.getLogger(__name__)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter; `transformers` loads one wherever this file is, beside a model too."""
    return (folder / CONFIGURATION).is_file()


def checked_adapter(adapter: str | os.PathLike[str]) -> Path:
    """The folder of a LoRA adapter that can be loaded here.

    Raises:
        FileNotFoundError: If there is no such folder, or it is incomplete.
        ValueError: If its weights are pickled, or it is another kind of adapter.
        ImportError: If peft is missing.
    """
    folder = Path(adapter).expanduser()
    if not is_adapter(folder):
        msg = (
            f"adapter {str(adapter)!r}: no folder with an {CONFIGURATION} in it; give a folder written by "
            "PeftModel.save_pretrained, and download one of the hub first: hf download NAME --local-dir FOLDER"
        )
        raise FileNotFoundError(msg)
    if not (folder / WEIGHTS).is_file() and (folder / PICKLE).is_file():
        msg = (
            f"{folder / PICKLE}: a pickle, which runs code when it is read, so it is not; save the adapter as "
            "safetensors: PeftModel.save_pretrained(folder, safe_serialization=True)"
        )
        raise ValueError(msg)
    if not (folder / WEIGHTS).is_file():
        msg = f"{folder}: an {CONFIGURATION} and no {WEIGHTS}: the adapter is incomplete"
        raise FileNotFoundError(msg)
    kind = _configuration(folder).get("peft_type")
    if kind != "LORA":
        msg = (
            f"{folder}: an adapter of kind {kind!r}, and only LoRA is supported; merge it yourself, "
            "PeftModel.merge_and_unload(), and give the model that is left"
        )
        raise ValueError(msg)
    if find_spec("peft") is None:
        msg = "adapters need the package peft: pip install 'positional-heads[peft]'"
        raise ImportError(msg)
    return folder


def base_of(folder: Path) -> str:
    """The base model that an adapter was trained on: a folder, or a hub name that is in the hub's cache.

    A path is looked for as it is written, then beside the adapter and in its folder.

    Raises:
        FileNotFoundError: If it is not on this machine.
    """
    from transformers.utils import cached_file

    base = str(_configuration(folder).get("base_model_name_or_path") or "")
    other = f"give it yourself: load_model(BASE, adapter={str(folder)!r}), or --adapter {folder} on the command line"
    if not base:
        msg = f"{folder}: its {CONFIGURATION} does not name the base model; {other}"
        raise FileNotFoundError(msg)
    for place in (Path(base).expanduser(), folder / base, folder.parent / base):
        if (place / "config.json").is_file():
            return str(place)
    looks_local = Path(base).is_absolute() or base.startswith(".") or base.count("/") > 1
    if not looks_local and cached_file(
        base, "config.json", local_files_only=True, _raise_exceptions_for_missing_entries=False
    ):
        return base
    fetch = "" if looks_local else f"download it first, hf download {base}, or "
    msg = f"{folder}: its base model {base!r} is not on this machine; {fetch}{other}"
    raise FileNotFoundError(msg)


def with_adapter(model: Any, folder: Path, *, merge: bool) -> Any:
    """A Hugging Face model with an adapter: in its weights, or beside them.

    Args:
        model: The base model, which is changed.
        folder: Folder of a checked adapter.
        merge: Add it to the weights; else its layers compute it.

    Raises:
        ValueError: If it does not fit the model, or weights are on disk.
    """
    _warn_of_another_base(folder, model)
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    if any(parameter.is_meta for parameter in model.parameters()):
        msg = "weights on disk cannot take an adapter: merge it first, save the model, and offload that"
        raise ValueError(msg)
    _refuse_another_shape(folder, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's on transformers, and on tensors that are missing: refused below
        adapted = PeftModel.from_pretrained(model, str(folder))
    with safe_open(folder / WEIGHTS, "pt") as file:
        stored = set(file.keys())
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    unused = {name for name in stored - wanted if "lora_" in name}
    if wrong := sorted(wanted - stored) + sorted(unused):
        msg = (
            f"the adapter {folder} does not fit: {len(wanted - stored)} of its tensors are missing, {len(unused)} "
            f"belong nowhere ({', '.join(wrong[:2])})"
        )
        raise ValueError(msg)
    return adapted.merge_and_unload(safe_merge=True) if merge else adapted.get_base_model()


def _refuse_another_shape(folder: Path, model: Any) -> None:
    """Refuse factors that do not fit the layers they belong to; `torch` would list all of them.

    Raises:
        ValueError: If there are any.
    """
    from safetensors import safe_open

    modules, wrong = dict(model.named_modules()), []
    with safe_open(folder / WEIGHTS, "pt") as file:
        for name in file.keys():  # noqa: SIM118  it is no mapping
            place, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
            axis, side = {"A": (1, "in_features"), "B": (0, "out_features")}.get(factor[:1], (0, ""))
            has, wanted = file.get_slice(name).get_shape()[axis], getattr(modules.get(place), side, None)
            if wanted not in {None, has}:
                wrong.append(f"{place} has {wanted} {side.replace('_', ' ')}, the adapter's {has}")
    if wrong:
        msg = (
            f"the adapter {folder} is of a model of another shape ({wrong[0]}): give the model that it was trained on, "
            f"{_configuration(folder).get('base_model_name_or_path')!r} as it says"
        )
        raise ValueError(msg)


def _warn_of_another_base(folder: Path, model: Any) -> None:
    """Warn of an adapter that names another base than this one, where both have a name."""
    stated, source = _configuration(folder).get("base_model_name_or_path"), str(model.name_or_path or "")
    if not stated or not source or _is_here(str(stated), folder, Path(source)):
        return
    if not {_last_name(str(stated))} & {_last_name(name) for name in _names_of(model, source)}:
        logger.warning(
            "the adapter %s was trained on %r, as it says, and is put onto %r: unless these are the same weights, what "
            "it changes means nothing there",
            folder,
            stated,
            source,
        )


def _is_here(stated: str, folder: Path, source: Path) -> bool:
    """Whether the base that an adapter states is this folder: a path, or one of the hub's in its cache."""
    places = (Path(stated).expanduser(), folder / stated, folder.parent / stated)
    cached = f"models--{stated.replace('/', '--')}"
    return cached in source.parts or any(place.exists() and place.resolve() == source.resolve() for place in places)


def _names_of(model: Any, source: str) -> list[str]:
    """Names that a model is known by: of its folder or on the hub, in its own configuration, of the file it is from."""
    origin = getattr(model.config, ORIGIN, None) or {}
    names = [source, str(origin.get("file", ""))]
    configuration = Path(source) / "config.json"
    if configuration.is_file():
        names.append(str(json.loads(configuration.read_text(encoding="utf-8")).get("_name_or_path") or ""))
    return [name for name in names if name]


def _last_name(name: str) -> str:
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2].casefold()
    return PRECISION.sub("", last.removesuffix(".gguf"))


def _configuration(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / CONFIGURATION).read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{folder / CONFIGURATION}: not JSON ({error})"
        raise ValueError(msg) from error
    if not isinstance(found, dict):
        msg = f"{folder / CONFIGURATION}: not an object of settings"
        raise ValueError(msg)
    return found
