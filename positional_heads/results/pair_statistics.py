"""Statistics of each rotary pair of each head: norms, centres, agreement with the whole head, mean contributions."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from positional_heads.core.rotary import wavelengths


@dataclass(frozen=True, repr=False)
class PairStatistics:
    """What the queries and keys of each head have in each of its rotary pairs, as means over all tokens.

    A query head has the numbers of the key head that it reads. Values are NaN in layers that were not profiled, and
    beyond a layer's last pair. Norms and centres are in the model's own units, before the attention scale, without the
    attention factor of YaRN and LongRoPE.

    Attributes:
        frequencies: Frequency of each pair, in radians per token.
        query_norm: Mean of `|q^(i)|`, the length of the query in pair i (rotation leaves it as it is).
        key_norm: Mean of `|k^(i)|`.
        query_center: Mean of the query before rotation in the two channels of the pair, `E[q^(i)]` (TriAttention,
            arXiv 2604.04921).
        key_center: Mean of the key before rotation, `E[k^(i)]`.
        agreement: Contextual Agreement: share of the keys with the highest scores of the head that are also those with
            the highest contributions of this pair, over sampled queries (FASA, arXiv 2602.03152).
        contribution: Mean contribution of the pair to the attention score, in each range of distances; see
            `ContributionProfile`.
        unrotated: The same for the channels without rotation.
        counts: Query-key pairs behind each mean contribution.
        attention_factor: Attention factor of each head, 1 in plain RoPE; None in files of older versions.
    """

    frequencies: Float64[Tensor, "layer pair"]
    query_norm: Float64[Tensor, "layer head pair"]
    key_norm: Float64[Tensor, "layer head pair"]
    query_center: Float64[Tensor, "layer head pair 2"]
    key_center: Float64[Tensor, "layer head pair 2"]
    agreement: Float64[Tensor, "layer head pair"]
    contribution: Float64[Tensor, "layer head pair range"]
    unrotated: Float64[Tensor, "layer head range"]
    counts: Int[Tensor, "layer range"]
    attention_factor: Float64[Tensor, "layer head"] | None = None

    def __repr__(self) -> str:
        layers, heads, pairs = self.agreement.shape
        known = int(self.agreement.isfinite().any(-1).any(-1).sum())
        named = ", ".join(field.name for field in fields(self))
        return f"PairStatistics({known} of {layers} layers of {heads} heads, {pairs} pairs: {named})"

    @property
    def band_norm(self) -> Float64[Tensor, "layer head pair"]:
        """Mean query norm times mean key norm of each pair, which bounds its mean contribution.

        Barbero et al. (arXiv 2410.06205), section 4; the score that MHA2MLA (arXiv 2502.14837) ranks pairs by.
        """
        return self.query_norm * self.key_norm

    @property
    def wavelengths(self) -> Float64[Tensor, "layer pair"]:
        """Tokens per full rotation of each pair; infinite for a pair that does not rotate."""
        return wavelengths(self.frequencies)

    def turns(self, length: int) -> Float64[Tensor, "layer pair"]:
        """Full rotations that each pair makes within so many tokens: below 1, it never met all of its angles.

        Args:
            length: Tokens, e.g. of the sequences that the model was trained on.
        """
        return torch.as_tensor(length, dtype=torch.float64) / self.wavelengths
