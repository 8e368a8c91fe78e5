"""Records: what public functions return. Each saves and loads itself, becomes a data frame, and prints in one line."""

import functools
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from positional_heads.core.arguments import checked
from positional_heads.core.whole_files import write_atomically
from positional_heads.results.files import (
    ResultKind,
    packed,
    read_result,
    refuse_foreign,
    result_file,
    understood,
    unpacked,
)
from positional_heads.results.tables import model_label, result_html
from positional_heads.results.text import printable

if TYPE_CHECKING:
    import pandas as pd

SomeRecord = TypeVar("SomeRecord", bound="Record")
Table = TypeVar("Table", bound=Callable[..., "pd.DataFrame"])


class Record(ABC):
    """A frozen dataclass of tensors and JSON that knows where it comes from.

    A subclass sets `saved_as`, has a field `provenance`, and defines the abstract members. It needs
    `@dataclass(frozen=True, repr=False, eq=False)`, because a dataclass would print its tensors, and
    compare them by `==`, which has no single truth value: records are equal where they are the same object.
    """

    saved_as: ClassVar[ResultKind]
    provenance: dict[str, Any]

    @property
    def model_name(self) -> str:
        """Name of the model, with how its weights were stored if converted; parts of the provenance may be missing."""
        return model_label(self.provenance)

    @property
    def left_out(self) -> str:
        """What a budget left out, as the end of the description; empty if nothing."""
        budget = self.provenance.get("budget") or {}
        parts = [printable(part, newlines=False) for part in budget.get("left_out", [])]
        return f"; left out for a budget of {budget['minutes']:g} minutes: {'; '.join(parts)}" if parts else ""

    @property
    @abstractmethod
    def description(self) -> str:
        """The record in one line, in which every name is printable."""

    @property
    def verdict(self) -> str | None:
        """What the record shows, in words; None if it judges nothing."""
        return None

    @abstractmethod
    def to_frame(self) -> "pd.DataFrame":
        """The record as a table."""

    @abstractmethod
    def _content(self) -> dict[str, Any]:
        """Everything that is not a tensor, as JSON."""

    @classmethod
    @abstractmethod
    def _from_file(cls: type[SomeRecord], content: dict[str, Any], tensors: dict[str, Tensor]) -> SomeRecord:
        """The record of a file's content and tensors."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.description})"

    def _repr_html_(self) -> str:
        return result_html(
            type(self).__name__,
            self.description,
            self.verdict,
            self._main_table(),
            self.provenance,
            own=self._meanings,
        )

    @property
    def _meanings(self) -> Mapping[str, str]:
        """What columns of that table mean in this record only."""
        return {}

    def _main_table(self) -> "pd.DataFrame":
        """The table that notebooks show."""
        return self.to_frame()

    @checked
    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file, complete or not at all.

        Args:
            path: A file, or a folder, in which the file gets the name that `load` looks for.

        Returns:
            The file written.

        Raises:
            ResultFileError: If a file there is not a result.
        """
        file = result_file(path, self.saved_as.file_name)
        refuse_foreign(file)
        write_atomically(file, self.to_bytes())
        return file

    def to_bytes(self) -> bytes:
        """The bytes of the file that `save` writes, to be kept elsewhere."""
        copied = torch.contiguous_format  # a copy of each, because safetensors refuses tensors that share memory
        tensors = {name: tensor.clone(memory_format=copied) for name, tensor in self._tensors().items()}
        return packed(safetensors.torch.save(tensors), self._content(), self.saved_as)

    @classmethod
    @checked
    def load(cls: type[SomeRecord], path: str | Path) -> SomeRecord:
        """Read what `save` wrote.

        Args:
            path: The file, or its folder.

        Raises:
            FileNotFoundError: If there is no such file.
            ResultFileError: If the file is damaged, foreign, or from a newer version.
        """
        _, raw = read_result(path, cls.saved_as)
        return cls.from_bytes(raw, result_file(path, cls.saved_as.file_name))

    @classmethod
    def from_bytes(cls: type[SomeRecord], raw: bytes, source: Any) -> SomeRecord:
        """Read what `to_bytes` gave.

        Args:
            raw: The bytes.
            source: Where they come from, for the error.

        Raises:
            ResultFileError: If they are damaged, foreign, or from a newer version.
        """
        content = unpacked(raw, cls.saved_as, source)
        with understood(source, cls.saved_as):
            return cls._from_file(content, safetensors.torch.load(raw))

    def _tensors(self) -> dict[str, Tensor]:
        """Every tensor by the name of its field; one in a dict or in a dataclass as `field.name`."""
        return named_tensors({field.name: getattr(self, field.name) for field in fields(self)})  # type: ignore[arg-type]


def named_tensors(values: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Every tensor among some values by its name; one in a dict or in a dataclass as `name.inner`."""
    tensors: dict[str, Tensor] = {}
    for name, value in values.items():
        inner = {one.name: getattr(value, one.name) for one in fields(value)} if is_dataclass(value) else value
        if isinstance(inner, Tensor):
            tensors[name] = inner
        elif isinstance(inner, Mapping):
            tensors |= {f"{name}.{deeper}": one for deeper, one in named_tensors(inner).items()}
    return tensors


def nested(tensors: Mapping[str, Tensor], field: str) -> dict[str, Tensor]:
    """The tensors that `Record.save` named `field.name`, by name."""
    return {key.removeprefix(f"{field}."): one for key, one in tensors.items() if key.startswith(f"{field}.")}


def json_rows(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    """The rows of a table as JSON, to six digits: who needs more has the tensors. An unknown number is None."""
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", double_precision=15))
    return [{key: float(f"{x:.6g}") if isinstance(x, float) else x for key, x in row.items()} for row in rows]


def computed_once(method: Table) -> Table:
    """Keep a record's table for each set of arguments; every call gets a copy, because data frames are mutable."""
    signature = inspect.signature(method)

    @functools.wraps(method)
    def kept(self: Any, *args: Any, **kwargs: Any) -> "pd.DataFrame":
        tables = self.__dict__.setdefault("_tables", {})
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError:
            return method(self, *args, **kwargs)  # Python's own message names the method and the argument
        bound.apply_defaults()  # so that a default given explicitly finds the same table
        key = method.__name__, *list(bound.arguments.values())[1:]
        if key not in tables:
            tables[key] = method(self, *args, **kwargs)
        return tables[key].copy()

    return kept  # type: ignore[return-value]
