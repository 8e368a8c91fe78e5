"""The record of a recommendation: what a longer context asks of a model, and what to put into its configuration."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor

from positional_heads.core.heads import Head
from positional_heads.core.statistics import mean_interval
from positional_heads.results.choosing import Choice, chosen
from positional_heads.results.files import RECOMMENDATION
from positional_heads.results.recommendation_words import diagnosis_words, recommendation_verdict
from positional_heads.results.record import Record, computed_once, json_rows, nested
from positional_heads.results.text import printable
from positional_heads.results.verdicts import VISIBLE_JUMP

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    *("candidate", "method", "factor", "loss", "loss_change", "loss_low", "loss_high"),
    *("within", "within_change", "within_low", "within_high", "exact", "log_prob", "recall_change", "recall_low"),
    *("recall_high", "config"),
)
OF_TASK = ("exact", "log_prob", "recall_change", "recall_low", "recall_high")


@dataclass(frozen=True)
class RotaryKind:
    """Layers that rotate alike.

    Attributes:
        layers: Their indices.
        window: Tokens of their sliding window; None without one.
        extended: Whether methods were applied to them.
    """

    layers: list[int]
    window: int | None
    extended: bool


@dataclass(frozen=True, repr=False, eq=False)
class Recommendation(Record):
    """What extends a model's context to a target length, by evidence on a text.

    The rules by which one candidate is taken are those of `positional_heads.results.choosing`. The first candidate is
    the model without extension; there is none where there is nothing to do.

    Attributes:
        labels: Name of each candidate with its factor.
        methods: Settings of each, with its name as `method`.
        losses: Loss of each sequence's tokens beyond the training length, in nats per token.
        losses_within: Loss of each sequence's beginning, run alone, up to the training length: what short texts lose.
        answers: exact and log_prob of each answer of the task beyond the training length; empty without a task.
        blocks: What to put into config.json for each candidate, checked by loading it; None where it cannot be said.
        reasons: Why there is no block, where there is none.
        kinds: Layers that rotate alike.
        frequencies: Frequency of each pair of each kind, in radians per token; NaN where a kind has fewer pairs.
        heads: Heads whose curve was measured without extension.
        jumps: Jump of each head's curve at the training length, in standard deviations of its own variation.
        rho: Spearman's rho of each within the training length.
        training_length: Tokens that the model was trained on.
        target_length: Tokens to extend to.
        provenance: Versions, model, data, task and settings.
        notes: What was left out and why, in sentences.
    """

    labels: list[str]
    methods: list[dict[str, Any]]
    losses: Float64[Tensor, "candidate sequence"]
    losses_within: Float64[Tensor, "candidate sequence"]
    answers: dict[str, Float64[Tensor, "candidate answer"]]
    blocks: list[dict[str, Any] | None]
    reasons: list[str | None]
    kinds: list[RotaryKind]
    frequencies: Float64[Tensor, "kind pair"]
    heads: list[Head]
    jumps: Float64[Tensor, " head"]
    rho: Float64[Tensor, " head"]
    training_length: int
    target_length: int
    provenance: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    saved_as = RECOMMENDATION

    @cached_property
    def choice(self) -> Choice:
        """What the rules say of each candidate."""
        expressible = [block is not None for block in self.blocks]
        answers, ratio = self.answers.get("log_prob"), self.target_length / self.training_length
        return chosen(self.losses, self.losses_within, answers, self.methods, expressible, ratio)

    @property
    def taken(self) -> str | None:
        """Label of the candidate to take; None for none."""
        return None if self.choice.taken is None else self.labels[self.choice.taken]

    @property
    def config(self) -> dict[str, Any] | None:
        """The keys to put into config.json, for version 4 and 5 of transformers; None if nothing is to be changed.

        They are those of the candidate to take. Another's are in `blocks`.
        """
        return None if self.choice.taken is None else self.blocks[self.choice.taken]

    @property
    def rope_scaling(self) -> dict[str, Any] | None:
        """The block itself, without the keys that stand beside it; None if nothing is to be changed."""
        config = self.config
        return None if config is None else config.get("text_config", config)["rope_scaling"]

    @property
    def description(self) -> str:
        """Model, lengths and candidates, in one line."""
        name = printable(self.model_name, newlines=False)
        tried = f"{', '.join(self.labels)} on {self.losses.shape[1]} sequences" if self.labels else "nothing to try"
        return f"{name}, trained on {self.training_length} tokens, to {self.target_length}: {tried}{self.left_out}"

    @computed_once
    def to_frame(self, level: float = 0.95) -> "pd.DataFrame":
        """One row per candidate: its losses and recall, and their change from no extension with intervals.

        Args:
            level: Coverage of the intervals, which are over sequences, and over answers of the task.
        """
        import pandas as pd

        lines = []
        for place, label in enumerate(self.labels):
            method = self.methods[place]
            line = {"candidate": label, "method": method["method"], "factor": float(method.get("factor", "nan"))}
            for name, losses in (("loss", self.losses), ("within", self.losses_within)):
                change = losses[place] - losses[0]
                low, high = mean_interval(change, level).tolist() if place else (0.0, 0.0)
                line |= {name: float(losses[place].mean()), f"{name}_change": float(change.mean())}
                line |= {f"{name}_low": low, f"{name}_high": high}
            if self.answers:
                exact, log_prob = self.answers["exact"], self.answers["log_prob"]
                change = log_prob[place] - log_prob[0]
                low, high = mean_interval(change, level).tolist() if place else (0.0, 0.0)
                line |= {"exact": float(exact[place].mean()), "log_prob": float(log_prob[place].mean())}
                line |= {"recall_change": float(change.mean()), "recall_low": low, "recall_high": high}
            lines.append({**line, "config": self.blocks[place] is not None})
        return pd.DataFrame(lines, columns=[name for name in COLUMNS if self.answers or name not in OF_TASK])

    @computed_once
    def pair_frame(self) -> "pd.DataFrame":
        """One row per kind of layer and rotary pair: its wavelength, and the angles that it meets for the first time.

        `turns` is how often pair i turns within the training length L, L f_i / 2 pi, and `target_turns` within the
        distances that the layer sees at the target, at most its window. `unseen` is the share of the circle that those
        distances reach and the training did not: min(1, R f_i / 2 pi) - min(1, L f_i / 2 pi), R being the longer one.
        It is 0 for a pair that completed a turn.
        """
        import pandas as pd

        lines = []
        for kind, frequencies in zip(self.kinds, self.frequencies, strict=True):
            seen = self.training_length if kind.window is None else min(kind.window, self.training_length)
            reached = self.target_length if kind.window is None else min(kind.window, self.target_length)
            turned = frequencies[~frequencies.isnan()] / (2 * torch.pi)
            for pair, share in enumerate(turned.tolist()):
                turns, later = share * seen, share * max(seen, reached)
                lines.append(
                    {
                        "layers": ", ".join(map(str, kind.layers)),
                        "pair": pair,
                        "wavelength": 1 / share if share else float("inf"),
                        "turns": turns,
                        "target_turns": later,
                        "completed": turns >= 1,
                        "unseen": min(1.0, later) - min(1.0, turns),
                    }
                )
        return pd.DataFrame(lines)

    @computed_once
    def head_frame(self) -> "pd.DataFrame":
        """One row per head that was followed without extension, the strongest first: its rho and its jump."""
        import pandas as pd

        rows = [
            {"name": str(head), "rho": rho, "jump": jump, "visible": abs(jump) > VISIBLE_JUMP}
            for head, rho, jump in zip(self.heads, self.rho.tolist(), self.jumps.tolist(), strict=True)
        ]
        columns = ["name", "rho", "jump", "visible"]
        return pd.DataFrame(rows, columns=columns).sort_values("rho", ascending=False, ignore_index=True)

    @property
    def diagnosis(self) -> str:
        """What the longer context asks of the pairs and heads of the model as it is, in words."""
        return diagnosis_words(self)

    @property
    def verdict(self) -> str:
        """Which candidate to take and why, in words; that none is better, or that there is nothing to do."""
        return recommendation_verdict(self)

    def _content(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "diagnosis": self.diagnosis,
            "config": self.config,
            "table": json_rows(self.to_frame()),
            "pairs": json_rows(self.pair_frame()),
            "jumps": json_rows(self.head_frame()),
            "labels": self.labels,
            "methods": self.methods,
            "blocks": self.blocks,
            "reasons": self.reasons,
            "kinds": [[kind.layers, kind.window, kind.extended] for kind in self.kinds],
            "followed": [str(head) for head in self.heads],
            "training_length": self.training_length,
            "target_length": self.target_length,
            "provenance": self.provenance,
            "notes": self.notes,
        }

    @classmethod
    def _from_file(cls, content: dict[str, Any], tensors: dict[str, Tensor]) -> "Recommendation":
        kept = ("labels", "methods", "blocks", "reasons", "training_length", "target_length", "provenance", "notes")
        return cls(
            **{name: content[name] for name in kept},
            **{name: tensor for name, tensor in tensors.items() if "." not in name},  # type: ignore[arg-type]
            answers=nested(tensors, "answers"),
            kinds=[RotaryKind(*kind) for kind in content["kinds"]],
            heads=[Head.parse(name) for name in content["followed"]],
        )
