"""Pictures of results: each function takes a result record, computes nothing new, and returns a figure.

Drawn with matplotlib: one library for notebooks, files and pages, static, without a browser or a network.
"""

from positional_heads.views.ablation_plots import dose_response
from positional_heads.views.extrapolation_plots import distinguishability, extrapolation_curves, methods_told_apart
from positional_heads.views.plots import allocation_curves, rho_heat_map

__all__ = [
    "allocation_curves",
    "distinguishability",
    "dose_response",
    "extrapolation_curves",
    "methods_told_apart",
    "rho_heat_map",
]
