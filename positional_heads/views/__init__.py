"""Pictures of results: each function takes a result record, computes nothing new, and returns a figure or a page.

Plots are drawn with matplotlib: one library for notebooks, files and pages, static, without a browser or a network.
Views of tokens are pages of their own, made of circuitsvis' bundle, that need no network either.
"""

from positional_heads.views.ablation import dose_response
from positional_heads.views.attention import attention_view
from positional_heads.views.contributions import contribution_view
from positional_heads.views.distribution import rho_distribution
from positional_heads.views.extrapolation import (
    distinguishability,
    extrapolation_curves,
    method_comparison,
    methods_told_apart,
)
from positional_heads.views.profile import contribution_by_distance
from positional_heads.views.scores import allocation_curves, rho_heat_map
from positional_heads.views.tokens import token_view
from positional_heads.views.view import View

__all__ = [
    "View",
    "allocation_curves",
    "attention_view",
    "contribution_by_distance",
    "contribution_view",
    "distinguishability",
    "dose_response",
    "extrapolation_curves",
    "method_comparison",
    "methods_told_apart",
    "rho_distribution",
    "rho_heat_map",
    "token_view",
]
