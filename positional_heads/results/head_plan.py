"""The record of a head plan: which key heads keep all keys, and which see the first keys and a window.

A window of W keys is a query's own key and the W - 1 before it. A key head with S first keys and a window of W has
min(n, S + W) entries in the cache at n tokens, any other min(n, V), where V is its layer's own sliding window. The
budget of a plan is a share of key heads: of those that could get a window, so many keep all keys. What share of the
entries that is depends on the length: `kept` and `kept_share` say it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from positional_heads.core.arguments import checked, in_range
from positional_heads.core.heads import Head
from positional_heads.core.key_heads import readers
from positional_heads.core.number_ranges import number_ranges
from positional_heads.results.files import HEAD_PLAN
from positional_heads.results.key_cache import KeyCache
from positional_heads.results.plan_checks import check_key_heads, check_plan, check_shape, check_whole
from positional_heads.results.record import Record, json_rows, nested
from positional_heads.results.text import printable

if TYPE_CHECKING:
    import pandas as pd

CHANCE = "chance"
KEPT = ("by", "budget", "window", "sinks", "notes", "provenance")
"""Fields that are no tensors."""


@dataclass(frozen=True, repr=False, eq=False)
class HeadPlan(Record):
    """Which key heads see only the first `sinks` keys and the last `window` ones; the others keep all keys.

    A plan is one of the model that was profiled (`model_name`), and means nothing to another.

    Attributes:
        windowed: The key heads with a window: True where one streams, in the words of DuoAttention and kvpress.
        ranked_by: What they were chosen by: the lowest got windows. NaN where it is not defined.
        key_heads: Key head that each query head reads; -1 in layers that were not profiled, which stay as they are.
        cache: Which layers hold keys, of how many key heads, and their own sliding windows.
        by: Name of what they were chosen by.
        budget: Share of the key heads to choose from that was to keep all keys.
        window: Last keys that a windowed head sees, the query's own among them.
        sinks: First keys of the text that it sees.
        notes: What the choice could not decide, in sentences.
        provenance: Versions, model, data and settings of the profile, and seed of the plan.
    """

    windowed: Bool[Tensor, "layer kv_head"]
    ranked_by: Float64[Tensor, "layer kv_head"]
    key_heads: Int[Tensor, "layer head"]
    cache: KeyCache
    by: str
    budget: float
    window: int
    sinks: int
    notes: list[str]
    provenance: dict[str, Any]

    saved_as = HEAD_PLAN

    def __post_init__(self) -> None:
        """Refuse what is no plan, e.g. in a file that somebody edited."""
        check_plan(self)
        check_key_heads(self.key_heads)
        self.cache.check(self.key_heads)
        shape = len(self.key_heads), int(self.key_heads.max()) + 1
        check_shape("windowed", self.windowed, shape, torch.bool)
        check_shape("ranked_by", self.ranked_by, shape, torch.float64)
        for name, least in (("window", 2), ("sinks", 0)):
            check_whole(name, getattr(self, name), least)
        if bool(self.ranked_by.isinf().any()) or bool((self.windowed & self.ranked_by.isnan()).any()):
            msg = "ranked_by must be finite, or NaN for key heads without a window"
            raise ValueError(msg)
        if bool((self.windowed & (~self.cache.holds(shape[1]) | (self.cache.windows > 0)[:, None])).any()):
            msg = "windowed has key heads that do not exist, or whose layer has a sliding window of its own"
            raise ValueError(msg)

    @property
    def heads(self) -> list[Head]:
        """The query heads that read a windowed key head."""
        return readers(self.windowed, self.key_heads, self.cache.keys_of)

    @property
    def own_windows(self) -> Int[Tensor, " layer"]:
        """Sliding window that each layer has itself, in keys; 0 where it has none."""
        return self.cache.windows

    @property
    def full_attention(self) -> Float64[Tensor, "layer kv_head"]:
        """1 for a key head that keeps all keys, 0 for one with a window, as DuoAttention's tables say it.

        Where layers hold different numbers of key heads, places without one have a 1.
        """
        return (~self.windowed).double()

    @property
    def ablation(self) -> dict[str, Any]:
        """The plan as an ablation: `with ph.ablated_heads(model, **plan.ablation)` is a model with these windows.

        `ablated_heads` cannot know which model a plan is for: give it the one that was profiled. `plan_study` and the
        command refuse another.
        """
        return {"heads": self.heads, "mode": "far", "distance": self.window - 1, "sinks": self.sinks}

    @checked
    def kept(self, length: int) -> int:
        """Entries in the cache after so many tokens, one for each key head and token that is kept.

        Only key heads that hold keys count: none of a layer without attention, or of one that reads another's keys.
        Layers of which nobody knows how many they hold are left out, which `notes` says.

        Args:
            length: Tokens, at least 1.

        Raises:
            ValueError: If there are none.
        """
        in_range("length", length, 1)
        saved = length - min(length, self.sinks + self.window)
        return self.cache.entries(length) - int(self.windowed.sum()) * saved

    @checked
    def kept_share(self, length: int) -> float:
        """The same as a share of the entries without the plan.

        Args:
            length: Tokens, at least 1.

        Raises:
            ValueError: If there are none.
        """
        return self.kept(length) / self.cache.entries(length)

    @property
    def description(self) -> str:
        """Model, how many key heads have a window, by what, and what share of the cache is kept, in one line."""
        length = self._length
        return (
            f"{printable(self.model_name, newlines=False)}: {self._chosen(bound=False)}; at {length} tokens "
            f"{self.kept_share(length):.0%} of the cache is kept"
        )

    @property
    def verdict(self) -> str:
        """What the plan is, and that it is no evidence."""
        rest = self.cache.key_heads - int(self.windowed.sum())
        others = f"; {rest} stay as they are" if rest and bool(self.windowed.any()) else ""
        shares = ", ".join(f"{self.kept_share(length):.1%} at {length} tokens" for length in self._lengths)
        left_out = f" (layers {number_ranges(self.cache.unknown)} left out)" if self.cache.unknown else ""
        return (
            f"{self._chosen(bound=True)}{others}. Entries of the cache that are kept{left_out}: {shares}. This is a "
            "choice, not yet evidence: run plan_study to test what it costs."
        )

    def _chosen(self, *, bound: bool) -> str:
        """How many key heads have a window, and what chose them."""
        n, number = self.cache.key_heads, int(self.windowed.sum())
        if not number:
            return f"no key head of {n} has a window: all stay as they are"
        by = f"those lowest by {printable(self.by, newlines=False)}"
        if bound:
            by += f" ({float(self.ranked_by[self.windowed].max()):.4g} or less)"
        by = "drawn at random" if self.by == CHANCE else by
        if number == int((~self.ranked_by.isnan()).sum()):
            by = "all that can have a window"
        return f"{number} of {n} key heads, {by}, see the first {self.sinks} and the last {self.window} keys"

    def to_frame(self) -> "pd.DataFrame":
        """One row per key head: who reads it, what it was chosen by, and whether it has a window."""
        import pandas as pd

        by_key_head: dict[tuple[int, int], list[str]] = {}
        for layer, row in enumerate(self.key_heads.tolist()):
            for head, key_head in enumerate(row):
                place = int(self.cache.keys_of[layer]), key_head
                by_key_head.setdefault(place, []).append(str(Head(layer, head)))
        rows = []
        for layer, held in enumerate(self.cache.held.tolist()):
            for key_head in range(held):
                known = key_head < self.windowed.shape[1]
                rows.append(
                    {
                        "layer": layer,
                        "key_head": key_head,
                        "readers": " ".join(by_key_head.get((layer, key_head), [])),
                        "value": float(self.ranked_by[layer, key_head]) if known else float("nan"),
                        "windowed": bool(self.windowed[layer, key_head]) if known else False,
                        "own_window": int(self.own_windows[layer]),
                    }
                )
        return pd.DataFrame(rows)

    @property
    def _length(self) -> int:
        """A length to speak of: the model's context."""
        return int(self.provenance.get("model", {}).get("context") or 4096)

    @property
    def _lengths(self) -> list[int]:
        return sorted({max(1, self._length // 4), max(1, self._length // 2), self._length})

    def _content(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "table": json_rows(self.to_frame()),
            "kept": {str(length): self.kept(length) for length in self._lengths},
            **{name: getattr(self, name) for name in KEPT},
        }

    @classmethod
    def _from_file(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "HeadPlan":
        own = {name: tensor for name, tensor in tensors.items() if "." not in name}
        cache = KeyCache(**nested(tensors, "cache"))
        return cls(cache=cache, **own, **{name: content[name] for name in KEPT})  # type: ignore[arg-type]
