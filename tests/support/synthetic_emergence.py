"""A made-up emergence study: three layers of four heads as in `synthetic_scores`, at four steps, with a task."""

from dataclasses import replace

import torch

from positional_heads.core.heads import Head
from positional_heads.results.emergence import EmergenceStudy
from tests.support.synthetic import synthetic_scores

STEPS = (0, 100, 1000, 4000)
TRACKS = {
    Head(0, 0): (0.5, 0.5, 0.5, 0.5),  # inherent: there at step 0
    Head(0, 1): (0.0, 0.5, 0.5, 0.5),
    Head(0, 2): (0.5, 0.0, 0.5, 0.5),  # lost once, then for good
    Head(1, 0): (0.0, 0.0, 0.0, 0.5),
    Head(1, 1): (0.5, 0.5, 0.5, 0.0),  # lost at the end: not born
}
"""rho at each step; 0 of the other heads of layers 0 and 1, and none in layer 2, which does not rotate."""
LEVELS = (-2.0, -1.9, -0.9, -0.1)
"""Mean log-probability at long range at each step; chance is -2."""
UNITS = 8


def planted_emergence(*, name: str = "planted", task: bool = True, null: bool = True, seed: int = 0) -> EmergenceStudy:
    """A study with these tracks; every interval of rho is about 0.1 wide, the null is 0 with little noise."""
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for number, step in enumerate(STEPS):
        made = synthetic_scores(null=null, seed=seed + number, name=f"{name} {step}")
        rho = torch.zeros_like(made.rho)
        rho[2] = torch.nan
        for head, track in TRACKS.items():
            rho[head] = track[number]
        drawn = rho + 0.03 * torch.randn(200, 3, 4, generator=generator, dtype=torch.float64)
        noise = 0.01 * torch.randn(6, 3, 4, generator=generator, dtype=torch.float64) + 0 * rho
        shuffled = None if made.null is None else replace(made.null, rho=noise)
        scores[step] = replace(made, rho=rho, null=shuffled, bootstrap_rho=drawn).without_curves()
    rows = [{"unit": unit, "reach": reach} for unit in range(UNITS) for reach in ("long", "long", "short")]
    answers = torch.tensor(LEVELS, dtype=torch.float64)[:, None] + 0.1 * torch.randn(
        len(STEPS), len(rows), generator=generator, dtype=torch.float64
    )
    retrieval = torch.rand(len(STEPS), 5, 3, 4, generator=generator, dtype=torch.float64) / 20
    retrieval[0] = torch.nan  # nothing is answered yet
    retrieval[1, 2] = torch.nan
    retrieval[2:, :, 1, 2] += 0.5
    retrieval[:, :, 2] = torch.nan
    provenance = {
        "versions": {"torch": "0"},
        "model": {"name": name, "layers": 3, "heads": 4},
        "data": {"sequences": 5, "longest": 9, "tokens": 45, "groups": 5},
        "settings": {
            "null_repeats": 6,
            "seed": seed,
            "resamples": 200,
            "retrieval": "passkey",
            "retrieval_examples": 5,
        },
        "task": {"name": "passkey", "lengths": [64], "depths": [0.0, 0.5], "examples": 4, "seed": seed},
        "source": {"folder": "runs"},
        "checkpoints": [{"step": step, "name": f"runs/{step}", "weights": str(step)} for step in STEPS],
    }
    return EmergenceStudy(
        scores=scores,
        loss=torch.tensor([5.0, 4.0, 3.0, 2.0]).double()[:, None]
        + 0.1 * torch.rand(4, 5, generator=generator, dtype=torch.float64),
        tokens=torch.tensor([8, 8, 8, 5, 3]),
        retrieval=retrieval,
        task="passkey" if task else "",
        rows=rows if task else [],
        values={"log_prob": answers, "exact": (answers > -1).double()} if task else {},
        chance={"log_prob": -2.0, "exact": 0.0} if task else {},
        notes=["Step 0: No retrieval scores."],
        provenance=provenance,
    )
