"""Checks of arguments against the annotations of public functions, before anything runs.

Annotations name whole numbers, finite numbers, texts, paths, lists of these, tensors or classes. Functions check ranges
themselves, and everything that depends on the model.
"""

import functools
import inspect
import math
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

import numpy as np

_VARIADIC = {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
LIMIT = 2**63
"""Bound on the size of numbers: they must fit into 64 bits."""
P = ParamSpec("P")
R = TypeVar("R")
Temperature = float | Literal["attention"]
"""Softmax temperature of D as a number, or that of the model's attention scale."""
NO_CHANGE = 1e-6
"""A factor that differs from 1 by no more than this changes nothing that can be measured."""
NAMES = {int: "a whole number", float: "a finite number", str: "a text", bool: "True or False", NoneType: "None"}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """A function that refuses arguments which do not fit its annotations, in one sentence, before it runs."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checking(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # Python's own message names the missing or surplus argument
        for name, value in bound.arguments.items():
            parameter = signature.parameters[name]
            if name == "model":
                _refuse_other_model(value)
            elif parameter.kind not in _VARIADIC and parameter.annotation is not parameter.empty:
                bound.arguments[name] = _converted(name, value, parameter.annotation)
        return function(*bound.args, **bound.kwargs)

    return checking


def check_fields(record: Any) -> None:
    """Refuse a dataclass whose fields do not fit their annotations.

    Raises:
        TypeError: If a field has another type.
        ValueError: If it is a number that is not finite, or a word that is not a choice.
    """
    for field in fields(record):
        _converted(field.name, getattr(record, field.name), field.type)


def check_settings(owner: str, settings: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse keyword settings with other names than these.

    Args:
        owner: The task or function that takes the settings, for the message.
        settings: The settings given.
        names: All names that exist.

    Raises:
        TypeError: If another name is given.
    """
    names = list(dict.fromkeys(names))
    if unknown := sorted(settings.keys() - set(names)):
        near = [name for wrong in unknown for name in get_close_matches(wrong, names, n=1)]
        msg = f"{owner} has no setting {', '.join(unknown)}; it has {', '.join(names) or 'none'}"
        msg += f"; did you mean {', '.join(near)}?" if near else ""
        raise TypeError(msg)


def keyword_names(function: Callable[..., Any]) -> list[str]:
    """Names of a function's own arguments, besides the model."""
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.name != "model" and one.kind not in _VARIADIC]


def in_range(name: str, value: float | None, least: float, most: float | None = None) -> None:
    """Refuse a number outside of a range; None passes.

    Raises:
        ValueError: If it is outside.
    """
    if value is not None and value != value:  # noqa: PLR0124  NaN is in no range
        msg = f"{name} must be a number, not {value}"
        raise ValueError(msg)
    if value is not None and value < least:
        msg = f"{name} {value} must be at least {least}"
        raise ValueError(msg)
    if value is not None and most is not None and value > most:
        msg = f"{name} {value} must be at most {most}"
        raise ValueError(msg)


def refuse_twice(name: str, values: Iterable[object]) -> None:
    """Refuse values of which one is given twice: what is measured of it would count double, or once without a word.

    Raises:
        ValueError: If one is.
    """
    if repeated := [str(value) for value, count in Counter(values).items() if count > 1]:
        msg = f"{name} names {', '.join(repeated)} twice: give each once"
        raise ValueError(msg)


def check_temperature(temperature: Temperature) -> None:
    """Refuse a softmax temperature that is not positive.

    Raises:
        ValueError: If it is zero or negative.
    """
    if temperature != "attention" and not temperature > 0:
        msg = f"temperature {temperature} must be positive, or 'attention' for the model's attention scale"
        raise ValueError(msg)


def is_integer(value: Any) -> bool:
    """Whether a value is a whole number, and not True or False."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and not True or False."""
    # a whole number is finite, and may be too large for math.isfinite
    return isinstance(value, Real) and not isinstance(value, bool) and (is_integer(value) or math.isfinite(value))


def _converted(name: str, value: Any, annotation: Any) -> Any:
    """The value, with NumPy's numbers as Python's own; refused if it fits no part of the annotation."""
    kinds = get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)
    value = value.item() if isinstance(value, np.generic) else value
    blank_path = Path in kinds and isinstance(value, str) and not value.strip()
    if not blank_path and any(_fits(value, kind) for kind in kinds):
        return value
    if is_integer(value) and abs(value) >= LIMIT:
        msg = f"{name} {_brief(value)} must have fewer than 64 bits"
    elif is_number(value) and abs(value) >= LIMIT:
        msg = f"{name} {_brief(value)} must be below 2**63"
    else:
        allowed = " or ".join(dict.fromkeys(_in_words(kind) for kind in kinds))
        msg = f"{name} must be {allowed}, got {_brief(value)}"
        if any(get_origin(kind) is Sequence and _fits(value, *get_args(kind)) for kind in kinds):
            items = [part.strip() for part in value.split(",")] if isinstance(value, str) else [value]
            msg += f": write {items!r}"  # an item, or several in a text, without a list
    # as in Python itself: a wrong value of the right type is a ValueError
    number = isinstance(value, Real) and not isinstance(value, bool) and bool({int, float} & set(kinds))
    word = isinstance(value, str) and any(kind is Path or get_origin(kind) is Literal for kind in kinds)
    raise (ValueError if number or word else TypeError)(msg)


def _fits(value: Any, kind: Any) -> bool:
    value = value.item() if isinstance(value, np.generic) else value
    if kind in {int, float}:
        return (is_integer if kind is int else is_number)(value) and abs(value) < LIMIT
    origin = get_origin(kind)
    if origin in {Union, UnionType}:
        return any(_fits(value, one) for one in get_args(kind))
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if origin is Sequence:
        many = isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes))
        return many and all(_fits(item, *get_args(kind)) for item in value)
    try:
        return isinstance(value, origin or kind)
    except TypeError:  # Any, and other annotations that no single value can violate
        return True


def _in_words(kind: Any) -> str:
    if kind in NAMES:
        return NAMES[kind]
    if get_origin(kind) is Literal:
        return " or ".join(repr(choice) for choice in get_args(kind))
    if get_origin(kind) is Sequence:
        (item,) = get_args(kind)
        return f"a list of {_in_words(item).removeprefix('a ')}s"
    if get_origin(kind) is Callable:
        return "a function"
    if hasattr(kind, "dim_str"):  # jaxtyping's
        return f"a tensor {kind.__name__}"
    return "a path" if kind is Path or get_origin(kind) is PathLike else with_article(getattr(kind, "__name__", kind))


def with_article(noun: Any) -> str:
    """A noun as one of its kind: a tensor, an int."""
    return f"an {noun}" if str(noun)[0] in "aeiouAEIO" else f"a {noun}"


def _brief(value: Any) -> str:
    simple = isinstance(value, (str, int, float, list, tuple, dict, NoneType))
    if is_integer(value) and abs(value) >= LIMIT:
        return f"of {value.bit_length()} bits"  # Python refuses to write thousands of digits
    return reprlib.repr(value) if simple else with_article(type(value).__name__)


def _refuse_other_model(model: Any) -> None:
    if hasattr(model, "cfg"):
        return
    if hasattr(model, "config") and hasattr(model, "forward"):
        msg = f"model is Hugging Face's {type(model).__name__}: wrap it first, bridge = ph.load_model(model)"
        raise TypeError(msg)
    msg = f"model must be a TransformerBridge, got {_brief(model)}: load one by ph.load_model(name)"
    raise TypeError(msg)
