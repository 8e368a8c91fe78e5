"""Made-up examples of heads on a text, of any size, causal, with every attention row adding up to one."""

from collections.abc import Sequence

import torch

from positional_heads.core.heads import Head
from positional_heads.results.head_examples import HeadExamples

HOSTILE = (
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<img/src='x'/onerror='window.pwned=1'>",
    "\ud800",
    "a\0b",
    "{{ 7 * 7 }}",
    "&lt;b&gt;",
    "\u202edesrever",
    "' onmouseover='window.pwned=1",
)


def synthetic_examples(
    tokens: Sequence[str] = ("In", " the", " beginning", "\n", "God", " created"),
    *,
    heads: int = 2,
    pairs: int = 4,
    detailed: int | None = None,
    kept: int | None = None,
    name: str = "made up",
    seed: int = 0,
) -> HeadExamples:
    """A record with random numbers; every key is kept where every query-key pair is drawn, unless so many are."""
    generator = torch.Generator().manual_seed(seed)
    length = len(tokens)
    detailed = length if detailed is None else detailed
    hidden = torch.ones(detailed, detailed, dtype=torch.bool).triu(1)
    scores = torch.rand(heads, detailed, detailed, generator=generator).masked_fill(hidden, -torch.inf)
    dominant = (pairs - 1) * torch.rand(heads, detailed, detailed, generator=generator)
    pattern, dominant = scores.softmax(-1), dominant.masked_fill(hidden, torch.nan)
    kept = length if kept is None else kept
    own = _kept(pattern, dominant, kept) if detailed == length else _drawn(heads, length, kept, pairs, generator)
    return HeadExamples(
        tokens=list(tokens),
        heads=[Head(index // 4, index % 4) for index in range(heads)],
        pattern=pattern,
        dominant=dominant,
        contributions=torch.randn(heads, detailed, detailed, pairs, generator=generator),
        weighted_dominant=(pairs - 1) * torch.rand(heads, length, generator=generator),
        plain_dominant=(pairs - 1) * torch.rand(heads, length, generator=generator),
        mean_distance=torch.rand(heads, length, generator=generator) * torch.arange(length),
        mean_contributions=torch.randn(heads, length, pairs, generator=generator),
        notes=[],
        provenance={"model": {"name": name, "weights": "abc"}, "versions": {"torch": "0"}},
        **own,
    )


def _kept(pattern: torch.Tensor, dominant: torch.Tensor, kept: int) -> dict[str, torch.Tensor]:
    order = pattern.argsort(-1, descending=True)[..., :kept]
    attention, dimension = (values.gather(-1, order) for values in (pattern, dominant))
    return {
        "kept_keys": order.masked_fill(dimension.isnan(), -1).short(),
        "kept_pattern": attention.half(),
        "kept_dominant": dimension.half(),
    }


def _drawn(heads: int, length: int, kept: int, pairs: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Some keys of every query of a long text, without all the others."""
    kept = min(kept, 32)
    position, number = torch.arange(length)[:, None], torch.arange(kept)
    keys = torch.where(number <= position, (position - number * (1 + position // (2 * kept))), -1)
    share = torch.rand(heads, length, kept, generator=generator).sort(-1, descending=True).values
    dominant = (pairs - 1) * torch.rand(heads, length, kept, generator=generator)
    return {
        "kept_keys": keys.expand(heads, -1, -1).int().clone(),
        "kept_pattern": (share / kept).masked_fill(keys < 0, 0).half(),
        "kept_dominant": dominant.masked_fill(keys < 0, torch.nan).half(),
    }
