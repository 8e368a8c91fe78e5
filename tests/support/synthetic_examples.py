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
    name: str = "made up",
    seed: int = 0,
) -> HeadExamples:
    """A record with random numbers."""
    generator = torch.Generator().manual_seed(seed)
    length = len(tokens)
    detailed = length if detailed is None else detailed
    hidden = torch.ones(detailed, detailed, dtype=torch.bool).triu(1)
    scores = torch.rand(heads, detailed, detailed, generator=generator).masked_fill(hidden, -torch.inf)
    dominant = (pairs - 1) * torch.rand(heads, detailed, detailed, generator=generator)
    return HeadExamples(
        tokens=list(tokens),
        heads=[Head(index // 4, index % 4) for index in range(heads)],
        pattern=scores.softmax(-1),
        dominant=dominant.masked_fill(hidden, torch.nan),
        contributions=torch.randn(heads, detailed, detailed, pairs, generator=generator),
        weighted_dominant=(pairs - 1) * torch.rand(heads, length, generator=generator),
        plain_dominant=(pairs - 1) * torch.rand(heads, length, generator=generator),
        mean_distance=torch.rand(heads, length, generator=generator) * torch.arange(length),
        mean_contributions=torch.randn(heads, length, pairs, generator=generator),
        notes=[],
        provenance={"model": {"name": name, "weights": "abc"}, "versions": {"torch": "0"}},
    )
