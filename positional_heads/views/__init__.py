"""Pictures of results: each function takes a record and returns a figure or a page; nothing is computed here.

Plots are static matplotlib figures. Views of tokens are pages of their own, drawn by circuitsvis' bundle. The report
puts a folder of results on one page. None of them needs a network.
"""

from positional_heads.views.ablation import dose_response
from positional_heads.views.attention import attention_view
from positional_heads.views.comparison import comparison, stability
from positional_heads.views.contributions import contribution_view
from positional_heads.views.distances import distance_curves
from positional_heads.views.emergence import emergence_tracks
from positional_heads.views.explorer.explorer import Explorer
from positional_heads.views.extrapolation import (
    distinguishability,
    extrapolation_curves,
    method_comparison,
    methods_told_apart,
)
from positional_heads.views.head_profile import measure_correlations, pair_curves, profile_maps
from positional_heads.views.plans import loss_by_budget
from positional_heads.views.profile import contribution_by_distance
from positional_heads.views.recommendation import loss_by_factor
from positional_heads.views.report.folder import write_report
from positional_heads.views.report.page import write_report_page
from positional_heads.views.scores import allocation_curves, rho_distribution, rho_heat_map
from positional_heads.views.tokens import token_view
from positional_heads.views.view import View

__all__ = [
    "Explorer",
    "View",
    "allocation_curves",
    "attention_view",
    "comparison",
    "contribution_by_distance",
    "contribution_view",
    "distance_curves",
    "distinguishability",
    "dose_response",
    "emergence_tracks",
    "extrapolation_curves",
    "loss_by_budget",
    "loss_by_factor",
    "measure_correlations",
    "method_comparison",
    "methods_told_apart",
    "pair_curves",
    "profile_maps",
    "rho_distribution",
    "rho_heat_map",
    "stability",
    "token_view",
    "write_report",
    "write_report_page",
]
