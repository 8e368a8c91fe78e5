"""The record of several scorings of one shape: which heads beat their null in how many, and how alike the ranks are."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from positional_heads.core.arguments import checked
from positional_heads.core.heads import Head
from positional_heads.core.rank_agreement import shared_top
from positional_heads.core.statistics import rank_correlation
from positional_heads.results.compare import same_result
from positional_heads.results.comparison_tables import RANKED_BY
from positional_heads.results.comparison_verdict import NAMED, TOP, named
from positional_heads.results.differing import differing
from positional_heads.results.files import STABILITY
from positional_heads.results.record import Record, computed_once, json_rows
from positional_heads.results.scores import HeadScores
from positional_heads.results.text import printable, rounded
from positional_heads.results.verdicts import ALPHA

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False, eq=False)
class Stability(Record):
    """Several scorings of one shape side by side.

    Attributes:
        names: What the results are called.
        rho: rho of every head in each result.
        excess: Excess over the null; NaN for results without a null.
        beats_null: Heads with a positive rho that beat their null, at a false discovery rate of 0.05; none in results
            without a null.
        provenance: The model, what differs from the first result, and the provenance of each.
        stays: Heads that beat their null without the first keys as well; None unless every result has a control and
            nulls, and in files of earlier versions.
    """

    names: tuple[str, ...]
    rho: Float64[Tensor, "result layer head"]
    excess: Float64[Tensor, "result layer head"]
    beats_null: Bool[Tensor, "result layer head"]
    provenance: dict[str, Any]
    stays: Bool[Tensor, "result layer head"] | None = None

    saved_as = STABILITY

    @property
    def description(self) -> str:
        """What is side by side, in one line."""
        _, layers, heads = self.rho.shape
        names = self._shown_names
        shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        return f"{printable(self.model_name, newlines=False)}: {layers} layers of {heads} heads on {shown}"

    @property
    def heads(self) -> list[Head]:
        """Every head of the model, in order."""
        _, layers, heads = self.rho.shape
        return [Head(layer, head) for layer in range(layers) for head in range(heads)]

    @property
    def times(self) -> dict[Head, int]:
        """In how many results each head beats its null with a positive rho."""
        return dict(zip(self.heads, self.beats_null.sum(0).flatten().tolist(), strict=True))

    @checked
    def stable_heads(self, *, stays: bool = False) -> list[Head]:
        """Heads that beat their null in every result, the one with the highest of its lowest rho first.

        Args:
            stays: Only those that do so without the first keys as well, in every result.

        Raises:
            ValueError: If that is asked for, and a result has no control.
        """
        if stays and self.stays is None:
            msg = "not every result has a control: score again with control_keys=64"
            raise ValueError(msg)
        lowest = self.rho.amin(0)
        everywhere = (self.stays if stays and self.stays is not None else self.beats_null).all(0)
        return sorted((head for head in self.heads if everywhere[head]), key=lambda head: -float(lowest[head]))

    @computed_once
    def to_frame(self) -> "pd.DataFrame":
        """One row per head: rho in each result, its lowest and mean, and in how many results it beats its null.

        `times_stays` counts the results in which it does so without the first keys as well, if that is known.
        """
        import pandas as pd

        frame = pd.DataFrame({"name": [str(head) for head in self.heads]})
        frame["layer"] = [head.layer for head in self.heads]
        frame["head"] = [head.head for head in self.heads]
        frame["times"] = list(self.times.values())
        if self.stays is not None:
            frame["times_stays"] = self.stays.sum(0).flatten().numpy()
        frame["lowest_rho"], frame["mean_rho"] = self.rho.amin(0).flatten().numpy(), self.rho.mean(0).flatten().numpy()
        for number, name in enumerate(self._shown_names):
            frame[f"rho on {name}"] = self.rho[number].flatten().numpy()
            frame[f"excess on {name}"] = self.excess[number].flatten().numpy()
            frame[f"beats on {name}"] = self.beats_null[number].flatten().numpy()
            if self.stays is not None:
                frame[f"stays on {name}"] = self.stays[number].flatten().numpy()
        return frame

    @computed_once
    def pairs(self) -> "pd.DataFrame":
        """One row per two results: rank correlations over heads, and shared top heads against chance."""
        import pandas as pd

        rows = []
        for (one, a), (two, b) in combinations(enumerate(self._shown_names), 2):
            rho, excess = ((values[one].flatten(), values[two].flatten()) for values in (self.rho, self.excess))
            defined = ~(rho[0].isnan() | rho[1].isnan())
            n_top = max(1, round(TOP * int(defined.sum())))
            top = shared_top(rho[0][defined], rho[1][defined], n_top)
            row = {"a": a, "b": b, "correlation_rho": rank_correlation(*rho)}
            row |= {"correlation_excess": rank_correlation(*excess), "k": top.k, "shared": top.shared}
            rows.append(row | {"expected": top.expected, "jaccard": top.jaccard, "p_shared": top.p_value})
        return pd.DataFrame(rows)

    @property
    def verdict(self) -> str:
        """How many heads beat their null everywhere, in words, at a false discovery rate of 0.05."""
        n_scored, n_results = int((~self.rho.isnan()).all(0).sum()), len(self.names)
        per_result = self.beats_null.flatten(1).sum(1).tolist()
        pairs = self.pairs()
        by_rho, by_excess = (
            f"{rounded(pairs[name].mean(), 2)}, lowest {rounded(pairs[name].min(), 2)}"
            for name in ("correlation_rho", "correlation_excess")
        )
        ranks = f"Mean rank correlation of rho over two results: {by_rho}; of the excess {by_excess}."
        if self.excess.isnan().flatten(1).all(1).any():
            return (
                f"Which heads are more than geometry is not known: every result needs a null (null_repeats=20). {ranks}"
            )
        stable, ever = self.stable_heads(), sum(times > 0 for times in self.times.values())
        by_chance = n_scored * prod(number / max(n_scored, 1) for number in per_result)
        return (
            f"{len(stable)} of {n_scored} heads beat their null with a positive rho in all {n_results} results (false "
            f"discovery rate {ALPHA:g} in each){f': {named(stable)}' if stable else ''}. By chance it would be "
            f"{by_chance:.2g}, if each result drew its heads at random.{self._staying(stable)} {ever} heads do in at "
            f"least one ({', '.join(map(str, per_result))} in each); that one does not in another is no evidence that "
            f"it differs there, `compare` tests that. {ranks}"
        )

    def _staying(self, stable: list[Head]) -> str:
        """How many of the stable heads stay in every result, as a sentence; what to do where it is not known."""
        if not stable:
            return ""
        if self.stays is None:
            return (
                " Whether these tell more than the first keys from the others is not known: score every text with "
                "control_keys=64."
            )
        settings = (one.get("settings", {}) for one in self.provenance["results"].values())
        keys = " or ".join(map(str, sorted({int(one.get("control_keys", 0)) for one in settings})))
        staying = self.stable_heads(stays=True)
        stay = f"{len(staying)} of these {len(stable)} {'stays' if len(staying) == 1 else 'stay'}"
        names = f": {named(staying)}" if staying else ""
        return f" {stay} in all {len(self.names)} results when the first {keys} keys are left out{names}."

    @property
    def _shown_names(self) -> list[str]:
        return [printable(name, newlines=False) for name in self.names]

    def ranked(self) -> "pd.DataFrame":
        """Rows of `to_frame` with a rho in every result: those first that beat their null, and stay, in most."""
        frame = self.to_frame().dropna(subset=["lowest_rho"])
        return frame.sort_values([name for name in RANKED_BY if name in frame], ascending=False)

    def _main_table(self) -> "pd.DataFrame":
        frame = self.ranked()
        columns = ["name", *RANKED_BY, "mean_rho", *(f"rho on {name}" for name in self._shown_names)]
        return frame[[name for name in columns if name in frame]]

    def _content(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "names": list(self.names),
            "table": json_rows(self.to_frame()),
            "pairs": json_rows(self.pairs()),
            "provenance": self.provenance,
        }

    @classmethod
    def _from_file(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "Stability":
        return cls(names=tuple(content["names"]), provenance=content["provenance"], **tensors)


@checked
def compare_all(results: Mapping[str, HeadScores]) -> Stability:
    """Put several scorings side by side: which heads beat their null in how many of them, and how alike ranks are.

    For how certain a change between two of them is, use `compare`.

    Args:
        results: What `score_heads` returned, by what to call it, e.g. {"prose": ..., "code": ...}; two or more.

    Raises:
        ValueError: If there are fewer than two, their shapes differ, or two are the same result.
    """
    names, scores = tuple(results), list(results.values())
    if len(names) < 2:  # noqa: PLR2004
        msg = f"{len(names)} of them given: give two results or more, by name"
        raise ValueError(msg)
    for name, result in results.items():
        if not isinstance(name, str) or not isinstance(result, HeadScores):
            msg = f"results must be HeadScores by name, got {type(result).__name__} by {name!r}"
            raise TypeError(msg)
    shapes = {name: tuple(one.rho.shape) for name, one in results.items()}
    if len(set(shapes.values())) > 1:
        said = ", ".join(
            f"{printable(name, newlines=False)}: {sizes[0]} x {sizes[1]}" for name, sizes in shapes.items()
        )
        msg = f"only models of one shape can be compared by head; layers x heads are {said}"
        raise ValueError(msg)
    for one, other in combinations(names, 2):
        if same_result(results[one], results[other]):
            both = " and ".join(printable(name, newlines=False) for name in (one, other))
            msg = f"{both} are the same result, every number is equal: leave one out"
            raise ValueError(msg)
    undefined = torch.full_like(scores[0].rho, torch.nan)
    nowhere = torch.zeros_like(undefined).bool()
    beats = [nowhere if each.null is None else each.beats_null() for each in scores]
    excess = [undefined if each.null is None else each.excess for each in scores]
    controls = [each.control for each in scores if each.null is not None and each.control is not None]
    controlled = len(controls) == len(scores) and all(control.null is not None for control in controls)
    others = dict(list(results.items())[1:])
    changes = {name: differing(scores[0].provenance, other.provenance) for name, other in others.items()}
    return Stability(
        names=names,
        rho=torch.stack([each.rho for each in scores]).double(),
        excess=torch.stack(excess).double(),
        beats_null=torch.stack(beats),
        stays=torch.stack([each.stays() for each in scores]) if controlled else None,
        provenance={
            "model": {"name": " and ".join(dict.fromkeys(each.model_name for each in scores))},
            "differing": {name: [str(change) for change in found] for name, found in changes.items()},
            "results": {name: each.provenance for name, each in results.items()},
        },
    )
