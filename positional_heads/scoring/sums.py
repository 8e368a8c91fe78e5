"""Sums of a run that add up over batches, processes and machines, and the scores that they give.

Nothing here needs the model: shards are merged and scored from their files alone.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from positional_heads.core.whole_files import write_atomically
from positional_heads.results.files import (
    PARTIAL,
    ResultFileError,
    earlier_sums,
    packed,
    read_result,
    result_file,
    understood,
    unpacked,
)
from positional_heads.results.record import nested
from positional_heads.results.scores import HeadScores
from positional_heads.scoring.layer_sums import LayerSums, named_tensors, read_layers
from positional_heads.scoring.profile_sums import ProfileSums
from positional_heads.scoring.result import run_of_control, scores_of

MAY_DIFFER = {"python", "name", "revision"}
"""May differ between machines that count for one run: the fingerprint of the weights identifies the model."""


@dataclass
class ScoreSums:
    """Sums over some batches of a scoring run, and what identifies the run.

    Attributes:
        layers: The sums of every scored layer.
        done: Numbers of the batches that are counted.
        run: Shape, number of batches, reasons and provenance of the run; must be JSON.
        kernels: Names of the kernels that placed the bins or counted.
        control: The sums of every scored layer without the first keys; empty if no control was asked for.
        profile: The sums of a head profile of every scored layer; empty if none was asked for.
    """

    layers: dict[int, LayerSums]
    done: set[int]
    run: dict[str, Any]
    kernels: set[str]
    control: dict[int, LayerSums] = field(default_factory=dict)
    profile: dict[int, ProfileSums] = field(default_factory=dict)

    @property
    def missing(self) -> set[int]:
        """Numbers of the batches that have not been counted."""
        return set(range(self.run["batches"])) - self.done

    @property
    def windows(self) -> dict[int, int | None]:
        """Sliding window of each scored layer's mask, in tokens."""
        return {layer: one.own.plan.window for layer, one in self.layers.items()}

    def empty(self) -> "ScoreSums":
        """The same run, nothing counted."""
        layers, control = ({layer: one.empty() for layer, one in part.items()} for part in (self.layers, self.control))
        profile = {layer: one.empty() for layer, one in self.profile.items()}
        return ScoreSums(layers, set(), self.run, set(), control, profile)

    def absorb(self, other: "ScoreSums") -> None:
        """Add the sums over other batches of the same run, in place.

        Raises:
            ValueError: If they are of another run, or of batches that are counted already.
        """
        if changed := differences(self.run, other.run):
            msg = f"sums of another run cannot be added (different: {', '.join(changed)})"
            raise ValueError(msg)
        if twice := self.done & other.done:
            msg = f"batch {min(twice)} is in both sums: it would count twice"
            raise ValueError(msg)
        for mine, others in ((self.layers, other.layers), (self.control, other.control)):
            for layer, ours in mine.items():
                ours.absorb(others[layer])
        for layer, own in self.profile.items():
            own.absorb(other.profile[layer])
        self.done |= other.done
        self.kernels |= other.kernels

    def result(self) -> HeadScores:
        """The scores, once every batch has been counted.

        Raises:
            RuntimeError: If batches are missing.
        """
        if self.missing:
            msg = f"{len(self.missing)} of {self.run['batches']} batches have not been counted: there is no score yet"
            raise RuntimeError(msg)
        control = scores_of(self.control, run_of_control(self.run), self.kernels) if self.control else None
        return scores_of(self.layers, self.run, self.kernels, control)

    def save(self, path: str | Path) -> Path:
        """Write the sums to one file, whole or not at all.

        Args:
            path: A file, or a folder.
        """
        file = result_file(path, PARTIAL.file_name)
        write_atomically(file, self.to_bytes())
        return file

    @classmethod
    def load(cls, path: str | Path) -> "ScoreSums":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ResultFileError: If the file is damaged, of another kind, or of another version.
        """
        content, raw = read_result(path, PARTIAL)
        file = result_file(path, PARTIAL.file_name)
        if earlier := earlier_sums(file, content):
            raise ResultFileError(earlier)
        with understood(file, PARTIAL):
            return cls.from_bytes(raw)

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes."""
        tensors = named_tensors(self.layers) | {
            f"control.{name}": one for name, one in named_tensors(self.control).items()
        }
        for layer, one in self.profile.items():
            tensors |= {f"profile.{layer}.{name}": tensor for name, tensor in one.tensors.items()}
        plans = {str(layer): asdict(one.own.plan) for layer, one in self.layers.items()}
        null = next(iter(self.layers.values())).null
        (lengths, *_) = [plan.pop("lengths") for plan in plans.values()]
        content = {
            "run": self.run,
            "done": sorted(self.done),
            "kernels": sorted(self.kernels),
            "lengths": lengths,
            "plans": plans,
            "null": None if null is None else {"repeats": null.plan.repeats, "most_entries": null.plan.most_entries},
        }
        return packed(save({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}), content, PARTIAL)

    @classmethod
    def from_bytes(cls, raw: bytes) -> "ScoreSums":
        """Read what `to_bytes` made, to the CPU; counting moves each layer's sums to the layer.

        Raises:
            ResultFileError: If it is damaged.
        """
        content = unpacked(raw, PARTIAL, "sums")
        tensors = load(raw)
        control = {}
        if keys := content["run"]["provenance"]["settings"].get("control_keys"):
            control = read_layers(content, nested(tensors, "control"), skip_keys=keys)
        layers, run = read_layers(content, tensors), content["run"]
        profile = {}
        if "profile" in run["provenance"]:
            profile = {layer: ProfileSums(nested(tensors, f"profile.{layer}")) for layer in layers}
        return cls(layers, set(content["done"]), run, set(content["kernels"]), control, profile)


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Names of what differs between two runs so that their sums cannot be added."""
    ours, theirs = (json.loads(json.dumps(run)) for run in (ours, theirs))
    names = []
    for part in ("model", "rotary", "data", "settings", "profile", "extension", "versions"):
        mine, other = (run["provenance"].get(part) for run in (ours, theirs))
        if isinstance(mine, dict) and isinstance(other, dict):
            keys = sorted({*mine, *other} - MAY_DIFFER)
            names += [f"{part} {key}" for key in keys if mine.get(key) != other.get(key)]
        elif mine != other:
            names.append(part)
    return names or ([] if ours["batches"] == theirs["batches"] else ["batch size"])
