"""Tell functions apart by what they do, as far as that can be read: their names are often the same."""

import functools
import hashlib
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

PLAIN = (int, float, str, bytes, bool, type(None))


def function_hash(function: Callable[..., Any]) -> str:
    """A sha256 over a function's code, defaults and the plain values that it encloses; the same in each run of Python.

    What it reads from elsewhere, and objects that it encloses, are not seen.
    """
    digest = hashlib.sha256()
    for part in _parts(function):
        digest.update(repr(part).encode() + b"\n")
    return digest.hexdigest()


def _parts(function: Any) -> list[Any]:
    if isinstance(function, functools.partial):
        return [*_parts(function.func), *map(_value, [*function.args, *sorted(function.keywords.items())])]
    plain = getattr(function, "__func__", function)
    code = getattr(plain, "__code__", None)
    if code is None:
        call = vars(type(function)).get("__call__")
        return [type(function).__qualname__, *(_parts(call) if isinstance(call, FunctionType) else [])]
    enclosed = [cell.cell_contents for cell in getattr(plain, "__closure__", None) or () if _filled(cell)]
    named = sorted((plain.__kwdefaults__ or {}).items())
    return [plain.__qualname__, *_code(code), *map(_value, [*(plain.__defaults__ or ()), *named, *enclosed])]


def _code(code: CodeType) -> list[Any]:
    consts = [_code(one) if isinstance(one, CodeType) else _value(one) for one in code.co_consts]
    return [code.co_code, code.co_names, code.co_varnames, consts]


def _value(value: Any) -> Any:
    """A plain value itself, and the type of any other: what it prints may hold an address."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, tuple | list):
        return [_value(one) for one in value]
    if isinstance(value, FunctionType):  # without what it encloses, which may be itself
        return _code(value.__code__)
    return type(value).__qualname__


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
