"""Rank correlations over heads among several measures."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from jaxtyping import Float64
from torch import Tensor

from positional_heads.core.statistics import rank_correlation

if TYPE_CHECKING:
    import pandas as pd


def rank_correlations(measures: Mapping[str, Float64[Tensor, "layer head"]]) -> "pd.DataFrame":
    """Spearman's rank correlation of every two measures, over the heads that have both; NaN where one is constant."""
    import pandas as pd

    flat = {name: values.flatten() for name, values in measures.items()}
    table = {name: [rank_correlation(one, other) for other in flat.values()] for name, one in flat.items()}
    return pd.DataFrame(table, index=list(flat))
