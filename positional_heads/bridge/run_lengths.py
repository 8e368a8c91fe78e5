"""Frequencies that follow the length of a run (dynamic NTK, LongRoPE, Phi-3's two sets): which length is a pass given?

Hugging Face's rotary modules take it from the largest position that they are handed: a chunk of a longer run, or a
short row of a padded batch, gets that of another run. Dynamic NTK also remembers the longest run so far. Inside a block
of `run_lengths` every row is rotated as in a run of its own length, the model's first.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from positional_heads.bridge.active import active_extension
from positional_heads.bridge.model import TransformerLensModel


@contextmanager
def run_lengths(
    model: TransformerLensModel, lengths: Sequence[int], attention_mask: Int[Tensor, "batch pos"] | None = None
) -> Iterator[None]:
    """A block in which each row is rotated as in one whole run of so many tokens, by a model that has run nothing yet.

    Args:
        model: A TransformerBridge.
        lengths: Tokens of each row's whole run; one number if all rows have the same.
        attention_mask: 1 for real tokens, 0 for padding; all real when None.

    Raises:
        ValueError: Of runs in the block, if real tokens have positions beyond their row's length.
    """
    rows = list(lengths) if len(set(lengths)) > 1 else [lengths[0]]
    extension = active_extension(model)
    with ExitStack() as undo:
        if extension is not None:
            extension.passing.pinned = rows
            undo.callback(setattr, extension.passing, "pinned", None)
        for module in rotary_modules(model):
            undo.callback(_forget, module)
            hook = _as_runs_of(rows, attention_mask)
            undo.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


@contextmanager
def fresh_runs(model: TransformerLensModel) -> Iterator[None]:
    """A block in which every run that continues no cache is rotated as if it were the model's first.

    For runs that others start: of the evaluation harness, of a user's own function.
    """

    def begin(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        places = told_positions(args, kwargs)
        if places is not None and int(places.min()) == 0:
            _forget(module)

    with ExitStack() as undo:
        for module in rotary_modules(model):
            undo.callback(_forget, module)
            undo.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
        yield


def follows_length(model: TransformerLensModel) -> bool:
    """Whether frequencies follow the length of a run, so that a padded batch gives short rows those of the longest."""
    extension = active_extension(model)
    if extension is not None and extension.follows_length:
        return True
    kinds = [getattr(module, "rope_type", None) for module in rotary_modules(model)]
    named = [name for kind in kinds for name in (kind.values() if isinstance(kind, dict) else [kind])]
    return any("dynamic" in str(name) or name == "longrope" for name in named)


def rotary_modules(model: TransformerLensModel) -> list[Any]:
    """Hugging Face's rotary modules, which every run passes through before its first layer; none in a stand-in."""
    original = getattr(model, "original_model", None)
    return [
        module
        for module in ([] if original is None else original.modules())
        if type(module).__name__.endswith("RotaryEmbedding") and hasattr(module, "config")
    ]


def told_positions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Int[Tensor, "#batch pos"] | None:
    """The positions among the arguments of a rotary module; None if it is not told any."""
    given = kwargs.get("position_ids", args[1] if len(args) > 1 else None)
    if not isinstance(given, Tensor):
        return None
    return given.reshape(-1, given.shape[-1]) if given.ndim < 3 else given[0]  # noqa: PLR2004  one of three equal axes


@torch.no_grad()
def whole_table(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], length: int) -> tuple[Tensor, ...]:
    """What a rotary module gives positions 0 to length - 1 in one run, the first that it sees.

    Args:
        module: One of `rotary_modules`.
        args: What it was called with.
        kwargs: The same, by name.
        length: Tokens of the run.

    Returns:
        Its cos and sin, or its one complex tensor, of shape [..., 1, length, channels].
    """
    given = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
    whole = torch.arange(length, device=given.device).expand(*given.shape[:-2], 1, length)
    if "position_ids" in kwargs:
        kwargs = {**kwargs, "position_ids": whole}
    else:
        args = (args[0], whole, *args[2:])
    _forget(module)
    found = module.forward(*args, **kwargs)  # not called as a module, so that no hook sees it
    return found if isinstance(found, tuple) else (found,)


def _as_runs_of(rows: list[int], attention_mask: Tensor | None) -> Callable[..., Any]:
    """A forward hook that puts rows of whole runs in place of what a rotary module returns."""
    known: dict[tuple[Any, ...], tuple[Tensor, ...]] = {}

    def table(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], length: int) -> tuple[Tensor, ...]:
        kind = (length, *args[2:], *(value for value in kwargs.values() if isinstance(value, str)))
        if kind not in known:
            known[kind] = whole_table(module, args, kwargs, length)
        return known[kind]

    def hook_fn(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        places = told_positions(args, kwargs)
        if places is None:
            return None
        tables = [table(module, args, kwargs, length) for length in rows]
        width = int(places.max()) + 1
        if len(rows) > 1 or width > rows[0]:
            if _same([*tables, table(module, args, kwargs, max(width, *rows))]):
                return None
            _refuse_shifted(places, rows, attention_mask)
        if len(rows) == 1:
            found = tuple(part[..., 0, :, :][..., places.clamp(max=rows[0] - 1), :] for part in tables[0])
        else:
            by_row = [
                tuple(part[..., 0, place.clamp(max=length - 1), :] for part in one)  # padding has no place of its own
                for one, place, length in zip(tables, places.expand(len(rows), -1), rows, strict=True)
            ]
            found = tuple(torch.stack(parts, dim=-3) for parts in zip(*by_row, strict=True))
        return found if isinstance(output, tuple) else found[0]

    return hook_fn


def _same(tables: list[tuple[Tensor, ...]]) -> bool:
    """Whether positions get the same whatever the length of the run."""
    longest = max(tables, key=lambda one: one[0].shape[-2])
    return all(
        torch.equal(part, whole[..., : part.shape[-2], :])
        for one in tables
        for part, whole in zip(one, longest, strict=True)
    )


def _refuse_shifted(places: Tensor, rows: list[int], attention_mask: Tensor | None) -> None:
    beyond = places >= torch.tensor(rows, device=places.device)[:, None]
    if attention_mask is not None and bool((beyond & attention_mask.bool()).any()):
        msg = (
            "this model counts padding among its positions and its frequencies follow the length of a run: give "
            "sequences of one length, without padding"
        )
        raise ValueError(msg)


def _forget(module: Any) -> None:
    """Take from a rotary module what dynamic NTK keeps of earlier runs."""
    for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
        prefix = name.removesuffix("max_seq_len_cached")
        first = getattr(module, f"{prefix}original_inv_freq", None)
        table = getattr(module, f"{prefix}inv_freq", None)
        if first is not None and table is not None and getattr(module, name) > module.original_max_seq_len:
            module.register_buffer(f"{prefix}inv_freq", first.to(table.device), persistent=False)
            setattr(module, name, module.original_max_seq_len)
