"""Rotate each row of a pass by the frequencies of its own whole run (dynamic NTK, LongRoPE, Phi-3's two tables).

Hugging Face's rotary modules choose frequencies by the largest position of a pass, so a chunk of a long run, or a short
row of a padded batch, would get those of another run. Dynamic NTK also keeps the frequencies of the longest run so far.
Inside a block of `run_lengths` every row is rotated as in a run of its own length, by a model that has run nothing yet.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from positional_heads.bridge.active import active_extension
from positional_heads.bridge.model import TransformerLensModel

Tables = tuple[Tensor, ...]
"""The output of a rotary module: cos and sin, or one complex tensor; [..., batch pos channel]."""


@contextmanager
def run_lengths(
    model: TransformerLensModel, lengths: Sequence[int], attention_mask: Int[Tensor, "batch pos"] | None = None
) -> Iterator[None]:
    """A block inside which each row is rotated as in one whole run of its length.

    Args:
        model: A TransformerBridge.
        lengths: Tokens of each row's whole run; one number if all rows have the same.
        attention_mask: 1 for real tokens, 0 for padding; all real when None.

    Raises:
        ValueError: Inside the block, if real tokens have positions beyond their row's length.
    """
    rows = list(lengths) if len(set(lengths)) > 1 else [lengths[0]]
    extension = active_extension(model)
    with ExitStack() as undo:
        if extension is not None:
            extension.set_run_lengths(rows)
            undo.callback(extension.set_run_lengths, None)
        for module in rotary_modules(model):
            undo.callback(_reset_frequencies, module)
            hook = _whole_run_hook(rows, attention_mask)
            undo.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


@contextmanager
def fresh_runs(model: TransformerLensModel) -> Iterator[None]:
    """A block inside which every run that continues no cache is rotated as the model's first run.

    For runs that others start, such as the evaluation harness or a user's function.
    """

    def reset(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        positions = position_ids(args, kwargs)
        if positions is not None and int(positions.min()) == 0:
            _reset_frequencies(module)

    with ExitStack() as undo:
        for module in rotary_modules(model):
            undo.callback(_reset_frequencies, module)
            undo.callback(module.register_forward_pre_hook(reset, with_kwargs=True).remove)
        yield


def follows_length(model: TransformerLensModel) -> bool:
    """Whether frequencies depend on the length of a run, so short rows of a padded batch get those of the longest."""
    extension = active_extension(model)
    if extension is not None and extension.follows_length:
        return True
    kinds = [getattr(module, "rope_type", None) for module in rotary_modules(model)]
    names = [name for kind in kinds for name in (kind.values() if isinstance(kind, dict) else [kind])]
    return any("dynamic" in str(name) or name == "longrope" for name in names)


def rotary_modules(model: TransformerLensModel) -> list[Any]:
    """Hugging Face's rotary modules, which every run calls before its first layer."""
    original = getattr(model, "original_model", None)
    return [
        module
        for module in ([] if original is None else original.modules())
        if type(module).__name__.endswith("RotaryEmbedding") and hasattr(module, "config")
    ]


def position_ids(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Int[Tensor, "#batch pos"] | None:
    """The positions among the arguments of a rotary module, or None if there are none."""
    positions = kwargs.get("position_ids", args[1] if len(args) > 1 else None)
    if not isinstance(positions, Tensor):
        return None
    if positions.ndim == 3:  # noqa: PLR2004  three axes (time, height, width), equal in text
        return positions[0]
    return positions.reshape(-1, positions.shape[-1])


@torch.no_grad()
def whole_table(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], length: int) -> Tables:
    """The table of positions 0 to length - 1 that a rotary module gives in its first run.

    Args:
        module: One of `rotary_modules`.
        args: Positional arguments of a call of it.
        kwargs: Keyword arguments of the call.
        length: Tokens of the run.
    """
    positions = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
    whole = torch.arange(length, device=positions.device).expand(*positions.shape[:-2], 1, length)
    if "position_ids" in kwargs:
        kwargs = {**kwargs, "position_ids": whole}
    else:
        args = (args[0], whole, *args[2:])
    _reset_frequencies(module)
    table = module.forward(*args, **kwargs)  # not module(...), which would run hooks
    return table if isinstance(table, tuple) else (table,)


def _whole_run_hook(rows: list[int], attention_mask: Tensor | None) -> Callable[..., Any]:
    """A forward hook that replaces a rotary module's output by each row's part of its whole run's table."""
    cache: dict[tuple[Any, ...], Tables] = {}

    def table(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], length: int) -> Tables:
        kind = (length, *args[2:], *(value for value in kwargs.values() if isinstance(value, str)))
        if kind not in cache:
            cache[kind] = whole_table(module, args, kwargs, length)
        return cache[kind]

    def hook_fn(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        positions = position_ids(args, kwargs)
        if positions is None:
            return None
        tables = [table(module, args, kwargs, length) for length in rows]
        width = int(positions.max()) + 1
        # Padded rows, or padding counted among the positions, need the tables only if they differ by length: otherwise
        # the module's own output is right for any mixture.
        if len(rows) > 1 or width > rows[0]:
            if _equal([*tables, table(module, args, kwargs, max(width, *rows))]):
                return None
            _refuse_counted_padding(positions, rows, attention_mask)
        if len(rows) == 1:
            own = tuple(part[..., 0, :, :][..., positions.clamp(max=rows[0] - 1), :] for part in tables[0])
        else:
            by_row = [
                tuple(part[..., 0, row.clamp(max=length - 1), :] for part in whole)  # the entry of padding is arbitrary
                for whole, row, length in zip(tables, positions.expand(len(rows), -1), rows, strict=True)
            ]
            own = tuple(torch.stack(parts, dim=-3) for parts in zip(*by_row, strict=True))
        return own if isinstance(output, tuple) else own[0]

    return hook_fn


def _equal(tables: list[Tables]) -> bool:
    """Whether every position has the same entries in all tables, whatever their lengths."""
    longest = max(tables, key=lambda table: table[0].shape[-2])
    return all(
        torch.equal(part, whole[..., : part.shape[-2], :])
        for table in tables
        for part, whole in zip(table, longest, strict=True)
    )


def _refuse_counted_padding(positions: Tensor, rows: list[int], attention_mask: Tensor | None) -> None:
    beyond = positions >= torch.tensor(rows, device=positions.device)[:, None]
    if attention_mask is not None and bool((beyond & attention_mask.bool()).any()):
        msg = (
            "this model counts padding among its positions, and its frequencies depend on the length of a run: give "
            "sequences of one length, without padding"
        )
        raise ValueError(msg)


def _reset_frequencies(module: Any) -> None:
    """Restore the frequencies that dynamic NTK has replaced in longer runs."""
    for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
        prefix = name.removesuffix("max_seq_len_cached")
        first = getattr(module, f"{prefix}original_inv_freq", None)
        table = getattr(module, f"{prefix}inv_freq", None)
        if first is not None and table is not None and getattr(module, name) > module.original_max_seq_len:
            module.register_buffer(f"{prefix}inv_freq", first.to(table.device), persistent=False)
            setattr(module, name, module.original_max_seq_len)
