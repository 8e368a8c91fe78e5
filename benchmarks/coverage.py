"""Coverage of 95 % intervals, simulated with few units, for docs/statistics.md.

`python -m benchmarks.coverage`, about a minute.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy import stats

from positional_heads.core.statistics import bootstrap_weights, mean_interval

RUNS = 4000
UNITS = (4, 5, 8, 12, 20)
Draw = Callable[[tuple[int, int]], np.ndarray]


def bounded(without: float, ablated: float, rng: np.random.Generator) -> Draw:
    """Changes of right answers: frequency with heads ablated minus frequency without."""
    return lambda shape: (rng.random(shape) < ablated).astype(float) - (rng.random(shape) < without)


def cases(rng: np.random.Generator) -> dict[str, tuple[Draw, float, tuple[float, float] | None]]:
    """Draws, their true mean, and the bounds given to the interval."""
    return {
        "normal": (lambda shape: rng.normal(size=shape), 0, None),
        "t, 5 degrees": (lambda shape: rng.standard_t(5, size=shape), 0, None),
        "gamma, shape 4": (lambda shape: rng.gamma(4, size=shape), 4, None),
        "exponential": (lambda shape: rng.exponential(size=shape), 1, None),
        "log-normal": (lambda shape: rng.lognormal(size=shape), float(np.exp(0.5)), None),
        "right 5 %": (lambda shape: (rng.random(shape) < 0.05).astype(float), 0.05, (0, 1)),
        "right 50 %": (lambda shape: (rng.random(shape) < 0.5).astype(float), 0.5, (0, 1)),
        "right 98 %": (lambda shape: (rng.random(shape) < 0.98).astype(float), 0.98, (0, 1)),
        "98 % to 90 %": (bounded(0.98, 0.9, rng), 0.9 - 0.98, (-1, 1)),
        "90 % to 20 %": (bounded(0.9, 0.2, rng), 0.2 - 0.9, (-1, 1)),
    }


def coverage(draw: Draw, truth: float, bounds: tuple[float, float] | None, units: int) -> tuple[float, float]:
    """Share of runs whose interval contains the true mean; share with an infinite end."""
    found = mean_interval(torch.from_numpy(draw((RUNS, units))), bounds=bounds).numpy()
    return float(((found[:, 0] <= truth) & (truth <= found[:, 1])).mean()), float(np.isinf(found).any(1).mean())


def rho_coverage(groups: int, rng: np.random.Generator) -> float:
    """Of `HeadScores.interval`, for a score that is the mean over groups of sequences, skewed from one to the next."""
    weights = bootstrap_weights(groups, 1000, 0).numpy() / groups
    values = 0.2 + 0.02 * (rng.gamma(4, size=(RUNS, groups)) - 4)
    spread = np.sqrt((values @ weights.T).var(1, ddof=1) * groups / (groups - 1))
    return float((np.abs(values.mean(1) - 0.2) <= stats.t.ppf(0.975, groups - 1) * spread).mean())


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    print("| units | " + " | ".join(map(str, UNITS)) + " |")
    print("| --- |" + " --- |" * len(UNITS))
    for name, (draw, truth, bounds) in cases(rng).items():
        cells = [coverage(draw, truth, bounds, units) for units in UNITS]
        said = [
            f"{100 * held:.0f}" + (f" ({100 * endless:.0f} infinite)" if endless > 0.005 else "")
            for held, endless in cells
        ]
        print(f"| {name} | " + " | ".join(said) + " |")
    print("| rho, gamma over groups | " + " | ".join(f"{100 * rho_coverage(units, rng):.0f}" for units in UNITS) + " |")


if __name__ == "__main__":
    main()
