"""What the key cache of a model holds, layer by layer, as far as a head profile knows it."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from positional_heads.core.number_ranges import number_ranges
from positional_heads.results.head_profile import HeadProfile

UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class KeyCache:
    """Which layers hold keys, and how many.

    Attributes:
        keys_of: Layer whose keys each layer reads: mostly itself; -1 for a layer without attention.
        held: Key heads that each layer holds itself; 0 where it holds none, -1 where nobody knows.
        windows: Sliding window of each layer, in keys; 0 where it has none.
    """

    keys_of: Int[Tensor, " layer"]
    held: Int[Tensor, " layer"]
    windows: Int[Tensor, " layer"]

    @property
    def key_heads(self) -> int:
        """Key heads of all layers of which it is known how many they hold."""
        return int(self.held.clamp(min=0).sum())

    def entries(self, length: int) -> int:
        """Entries after so many tokens: one for each key head and token that is kept."""
        each = torch.where(self.windows > 0, self.windows.clamp(max=length), length)
        return int((each * self.held.clamp(min=0)).sum())

    @property
    def unknown(self) -> list[int]:
        """Layers of which it is not known how many key heads they hold; no number counts them."""
        return (self.held == UNKNOWN).nonzero().flatten().tolist()

    def holds(self, n_kv_heads: int) -> Bool[Tensor, "layer kv_head"]:
        """The key heads that exist, in a table with so many columns."""
        return torch.arange(n_kv_heads) < self.held[:, None]

    @property
    def notes(self) -> list[str]:
        """What is not as in most models, in sentences."""
        notes, own = [], torch.arange(len(self.held))
        if none := (self.keys_of < 0).nonzero().flatten().tolist():
            notes.append(f"Layers {number_ranges(none)} have no attention, and no keys to cache.")
        if shared := ((self.keys_of >= 0) & (self.keys_of != own)).nonzero().flatten().tolist():
            holders = sorted(set(self.keys_of[shared].tolist()))
            notes.append(
                f"Layers {number_ranges(shared)} hold no keys and read those of layers {number_ranges(holders)}: a "
                "window there is one for all that read them."
            )
        if self.unknown:
            notes.append(
                f"How many key heads layers {number_ranges(self.unknown)} hold is not known: all numbers of entries "
                "leave them out."
            )
        return notes

    def check(self, key_heads: Int[Tensor, "layer head"]) -> None:
        """Refuse what cannot be.

        Args:
            key_heads: Key head that each query head reads, -1 where that is unknown.

        Raises:
            ValueError: If shapes do not fit, or a number is out of range.
        """
        layers, heads = key_heads.shape
        for name in ("keys_of", "held", "windows"):
            values = getattr(self, name)
            least = 0 if name == "windows" else -1
            if values.shape != (layers,) or values.dtype != torch.long or bool((values < least).any()):
                msg = f"cache.{name} must have a whole number of at least {least} for each of {layers} layers"
                raise ValueError(msg)
        if bool((self.keys_of >= layers).any()):
            msg = f"cache.keys_of names layers, of which there are {layers}"
            raise ValueError(msg)
        measured = key_heads.amax(-1)
        read = (measured >= 0) & (self.keys_of >= 0)
        holders = self.held[self.keys_of.clamp(min=0)]
        if bool((read & (measured + 1 != holders)).any()) or bool((self.held > heads).any()):
            msg = "key_heads names other key heads than the layer, or the one whose keys it reads, holds"
            raise ValueError(msg)


def key_cache(profile: HeadProfile) -> KeyCache:
    """What is cached by the model of a profile.

    Number of key heads and windows are the measured ones where there are some, and else those of the configuration.
    """
    said = {one["layer"]: one for one in profile.provenance.get("cache", [])}
    rotary = profile.provenance.get("rotary") or profile.scores.provenance.get("rotary") or []
    windows = {one["layer"]: one.get("window") for one in rotary}
    keys_of, held, own = [], [], []
    counts = (profile.key_heads.amax(-1) + 1).tolist()
    for layer, measured in enumerate(counts):
        cache = said.get(layer, {"keys_of": layer, "key_heads": None})
        holder, number = cache["keys_of"], cache["key_heads"]
        keys_of.append(-1 if holder is None else holder)
        number = UNKNOWN if number is None else number
        held.append((measured or number) if holder == layer else 0)
        own.append(windows.get(layer) or cache.get("window") or 0)
    for layer, holder in enumerate(keys_of):
        if counts[layer] and holder >= 0 and held[holder] == UNKNOWN:
            held[holder] = counts[layer]
    return KeyCache(torch.tensor(keys_of), torch.tensor(held), torch.tensor(own))
