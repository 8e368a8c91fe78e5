"""Documents of the explorer with numbers from a formula, of any size, without a model or a result file."""

import math

HOSTILE = (
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "javascript:window.pwned=1",
    "__proto__",
    "constructor",
    "<form id=app><input id=explorer-index name=getElementById>",
)


def synthetic_document(layers=3, heads=4, pairs=8, distances=24, *, hostile=False, runs=2, text=16):
    """A document in which every number says which head, pair and distance it belongs to."""
    names = [f"L{layer}H{head}" for layer in range(layers) for head in range(heads)]
    count = len(names)
    evil = HOSTILE if hostile else ("a model", "a text", "another text", "yarn x2", "a study", "a note")
    ids = [f"run-{number + 1}" for number in range(runs)]
    edges = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512][: 5 if pairs < 16 else 11]
    at = [round(2 ** (step / 3), 3) - 1 for step in range(distances)]
    frequency = [[10000 ** (-2 * pair / (2 * pairs)) for pair in range(pairs)]] * layers
    wavelength = [[round(2 * math.pi / one, 5) for one in row] for row in frequency]

    def values(shift, scale=1.0):
        return [round(scale * math.sin(1 + number * 0.7 + shift), 5) for number in range(count)]

    def measure(run, name, kind="sequential", shift=0.0):
        found = values(shift) if kind == "diverging" else [abs(one) for one in values(shift)]
        if kind == "flag":
            found = [int(one > 0) for one in values(shift)]
        found[-1] = None
        known = [one for one in found if one is not None]
        most = max(map(abs, known))
        return {
            "id": f"{run}/{name}",
            "run": run,
            "name": name,
            "title": name,
            "unit": "",
            "meaning": f"{name} means",
            "lower": name == "q_value",
            "scale": kind,
            "low": -most if kind == "diverging" else min(known),
            "high": most,
            "values": found,
            "intervals": {
                "low": [None if one is None else one - 0.1 for one in found],
                "high": [None if one is None else one + 0.1 for one in found],
            }
            if kind == "diverging"
            else None,
        }

    kinds = {
        "rho": "diverging",
        "excess": "diverging",
        "q_value": "sequential",
        "beats_null": "flag",
        "stays": "flag",
        "reach": "sequential",
    }
    measures = [
        measure(run, name, kind, number + 0.3 * order)
        for number, run in enumerate(ids)
        for order, (name, kind) in enumerate(kinds.items())
    ]
    details = {
        name: {
            "curves": {
                run: {
                    "mean": [round(pairs / 2 + number % 3 + math.log1p(one) / 4 + order, 4) for one in at],
                    "null_low": [round(pairs / 2 - 1 + number % 3, 4)] * distances,
                    "null_high": [round(pairs / 2 + 1 + number % 3, 4)] * distances,
                }
                for order, run in enumerate(ids)
            },
            "mass": {ids[0]: [round(1 / (len(edges) - 1), 5)] * (len(edges) - 1)},
            "contribution": {
                ids[0]: [
                    [round(math.sin(number + pair + place), 4) for place in range(len(edges) - 1)]
                    for pair in range(pairs)
                ]
            },
            "series": {
                ids[0]: {
                    "amplitude": [round(1 / (1 + pair), 5) for pair in range(pairs)],
                    "phase": [round(0.1 * number + pair, 5) for pair in range(pairs)],
                }
            },
            "extension": {ids[0]: {evil[3]: [1.0 + one for one in range(distances)], "none": [2.0] * distances}},
        }
        for number, name in enumerate(names)
    }
    return {
        "format": "positional_heads.explorer",
        "version": 1,
        "software": "0.1.0",
        "title": f"{evil[0]} on {evil[1]}",
        "model": {"name": evil[0], "layers": layers, "heads": heads, "training_length": 64},
        "runs": [
            {
                "id": run,
                "name": evil[1 + order % 2],
                "kind": "HeadProfile",
                "file": "heads.safetensors",
                "model": evil[0],
                "text": evil[1],
                "tokens": 100,
                "longest": 512,
                "verdict": evil[5],
                "description": evil[4],
            }
            for order, run in enumerate(ids)
        ],
        "notes": [evil[5]],
        "heads": names,
        "is": ["sink" if number % 2 else "induction" for number in range(count)],
        "names": [["sink", "previous token"] if number % 2 else ["induction"] for number in range(count)],
        "sentences": [f"{name} is a head: {evil[1]}." for name in names],
        "measures": measures,
        "rank_by": "run-1/excess",
        "curves": [
            {
                "run": run,
                "title": "Mean dominant pair by distance",
                "distance": at,
                "unit": "pair index",
                "training_length": 64,
                "null": "mean of the shuffles plus and minus 2 standard deviations",
                "wavelength": wavelength,
            }
            for run in ids
        ],
        "masses": [{"run": ids[0], "edges": edges}],
        "pairs": [{"run": ids[0], "edges": edges, "frequency": frequency, "wavelength": wavelength}],
        "series": [
            {
                "run": ids[0],
                "frequency": frequency,
                "base": 10000.0,
                "scaling": "default",
                "training_length": 64,
                "unit": "attention score",
            }
        ],
        "effects": [
            {
                "run": ids[0],
                "title": evil[4],
                "measure": "loss",
                "unit": "nats",
                "meaning": evil[5],
                "range": "long",
                "values": values(0.2, 0.1),
                "intervals": {"low": values(0.1, 0.1), "high": values(0.4, 0.1)},
            }
        ],
        "extensions": [
            {
                "run": ids[0],
                "title": evil[4],
                "distance": at,
                "methods": [evil[3], "none"],
                "heads": names,
                "training_length": 64,
            }
        ],
        "comparisons": [
            {
                "run": ids[0],
                "names": [evil[1], evil[2]],
                "rows": [
                    {
                        "name": "rho",
                        "a": values(0),
                        "b": values(0.3),
                        "change": values(0.1),
                        "low": values(0),
                        "high": values(0.2),
                        "q": [0.5] * count,
                    }
                ],
            }
        ],
        "texts": [],
        "details": details,
    }
