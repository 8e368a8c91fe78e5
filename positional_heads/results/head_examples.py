"""What did a few heads do on one text? A frozen record for looking at: views take it and compute nothing.

Two grains. For every token, as a query, one number per head: the mean over the keys that it sees, weighted by attention
unless said otherwise. For the first tokens also every query-key pair, so that no matrix grows with the text.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from positional_heads.core.arguments import checked
from positional_heads.core.heads import Head, Heads, as_heads
from positional_heads.results.files import EXAMPLES, EXAMPLES_FILE_NAME, read_result, result_file, write_result


@dataclass(frozen=True)
class HeadExamples:
    """Attention of some heads on one text, and which rotary pairs carry it.

    Attributes:
        tokens: The text's tokens, readable.
        heads: Which heads, in the order of the tensors.
        pattern: Attention of every query to every key, 0 where masked; first tokens only.
        dominant: Dominant dimension of every query-key pair (pair index), NaN where masked; first tokens only.
        contributions: What each pair adds to the attention score, before soft-cap and mask; first tokens only.
        weighted_dominant: Mean dominant dimension of each query, weighted by attention.
        plain_dominant: The same with every visible key counting alike.
        mean_distance: Mean distance to the keys, weighted by attention, in tokens.
        mean_contributions: Mean contribution of each pair, weighted by attention.
        notes: What was left out, in sentences.
        provenance: Versions, model, data and settings.
    """

    tokens: list[str]
    heads: list[Head]
    pattern: Float[Tensor, "head query_pos key_pos"]
    dominant: Float[Tensor, "head query_pos key_pos"]
    contributions: Float[Tensor, "head query_pos key_pos pair"]
    weighted_dominant: Float[Tensor, "head pos"]
    plain_dominant: Float[Tensor, "head pos"]
    mean_distance: Float[Tensor, "head pos"]
    mean_contributions: Float[Tensor, "head pos pair"]
    notes: list[str]
    provenance: dict[str, Any]

    def __post_init__(self) -> None:
        n_heads, length = self.weighted_dominant.shape
        if len(self.tokens) != length:
            msg = f"{len(self.tokens)} tokens do not fit numbers of {length}: give the tokens that the model ran on"
            raise ValueError(msg)
        if len(self.heads) != n_heads:
            msg = f"{len(self.heads)} heads do not fit numbers of {n_heads}: give one head for each"
            raise ValueError(msg)

    @property
    def n_pairs(self) -> int:
        """Number of rotary pairs; dominant dimensions go from 0 to one less."""
        return int(self.mean_contributions.shape[-1])

    @property
    def n_detailed(self) -> int:
        """Number of leading tokens of which every query-key pair is kept."""
        return int(self.pattern.shape[-1])

    @property
    def model_name(self) -> str:
        """What the model is called."""
        return str(self.provenance.get("model", {}).get("name", "unknown model"))

    def places(self, heads: Heads | None) -> list[int]:
        """Where the heads asked for stand in the tensors; all when None.

        Raises:
            ValueError: If one is not in the record, or none is asked for.
        """
        if heads is None:
            return list(range(len(self.heads)))
        chosen = as_heads(heads)
        for head in chosen:
            if head not in self.heads:
                known = ", ".join(str(one) for one in self.heads[:20])
                msg = f"{head} is not in these examples, they hold {known}: gather them again with this head"
                raise ValueError(msg)
        if not chosen:
            msg = "no heads asked for: give at least one, or None for all"
            raise ValueError(msg)
        return [self.heads.index(head) for head in chosen]

    @checked
    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file, all of it or nothing.

        Args:
            path: A file, or a folder, in which the file is called `examples.safetensors`.

        Returns:
            The file written.
        """
        file = result_file(path, EXAMPLES_FILE_NAME)
        data = save({name: getattr(self, name).contiguous().clone() for name in _TENSORS})
        content = {
            "tokens": self.tokens,
            "heads": [str(head) for head in self.heads],
            "notes": self.notes,
            "provenance": self.provenance,
        }
        write_result(file, data, content, EXAMPLES)
        return file

    @classmethod
    @checked
    def load(cls, path: str | Path) -> "HeadExamples":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ResultFileError: If the file is damaged, foreign, or from a newer version.
        """
        content, raw = read_result(path, EXAMPLES, EXAMPLES_FILE_NAME)
        return cls(
            tokens=content["tokens"],
            heads=[Head.parse(name) for name in content["heads"]],
            notes=content["notes"],
            provenance=content["provenance"],
            **load(raw),
        )


_TENSORS = [
    field.name for field in fields(HeadExamples) if field.name not in {"tokens", "heads", "notes", "provenance"}
]
