"""The explorer's atlas as a still picture, for notebooks on hosts that run nothing."""

from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from positional_heads.views.figures import DIVERGING, NORMAL, SMALL, Picture, readable

SEQUENTIAL = "Purples"  # as the page
NAMED = 5


def atlas_picture(document: dict[str, Any]) -> Picture:
    """The measure that the explorer shows first, layer by head, in its colours; the highest heads are named.

    Args:
        document: What `explorer_document` returned; it has a measure.
    """
    layers, heads = document["model"]["layers"], document["model"]["heads"]
    measure = next(one for one in document["measures"] if one["id"] == document["rank_by"])
    values = np.array([np.nan if value is None else value for value in measure["values"]]).reshape(layers, heads)
    figure = Picture(figsize=(min(12.0, 2.2 + 0.3 * heads), min(10.0, 1.6 + 0.16 * layers)), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(
        values,
        cmap=DIVERGING if measure["scale"] == "diverging" else SEQUENTIAL,
        norm=Normalize(measure["low"], measure["high"]),
        aspect="auto",
        interpolation="nearest",
    )
    order = sorted(
        (at for at, value in enumerate(measure["values"]) if value is not None), key=measure["values"].__getitem__
    )
    best = ", ".join(document["heads"][at] for at in order[: -NAMED - 1 : -1])
    run = next((one["name"] for one in document["runs"] if one["id"] == measure["run"]), "")
    title = f"{readable(document['title'])}\n{readable(measure['title'])} of {readable(run)}\nhighest: {best or 'none'}"
    panel.set_title(title, fontsize=NORMAL, parse_math=False)
    panel.set_xlabel("head", fontsize=SMALL)
    panel.set_ylabel("layer", fontsize=SMALL)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, ax=panel, label=readable(measure["unit"] or measure["title"]))
    return figure
