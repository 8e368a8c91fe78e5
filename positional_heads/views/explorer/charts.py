"""The charts of the explorer, declared in Altair and compiled to Vega, without data: the page fills them in.

Vega draws them as SVG in the colour of the text around, so that they follow the reader's light or dark scheme and
print. Colours and tooltips come with the rows, so a chart knows no scale of colours and no text of its own.
"""

import json
from functools import lru_cache
from typing import Any, TypeAlias

import altair as alt
import vl_convert

Chart: TypeAlias = alt.Chart | alt.LayerChart | alt.FacetChart
INK = "currentColor"
TEXT = alt.Tooltip("text:N", title=" ")
"""What the page says of a mark, as one text, which the tooltip escapes."""
DASHES = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3))
DISTANCES = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, *(10**power * step for power in (3, 4, 5) for step in (1, 2, 5))]
"""Where the axis of distances has its marks: on it, distance 0 has a place too."""
DOMAINS = {
    ("atlas", "x"): ("heads", ("head",)),
    ("atlas", "y"): ("heads", ("layer",)),
    ("effects", "x"): ("every", ("value", "low", "high")),
    ("effects", "y"): ("every", ("study",)),
    ("compared", "x"): ("every", ("a",)),
    ("compared", "y"): ("every", ("b",)),
}
"""Rows that alone stretch a scale: were the chosen heads among them, each choice would place every mark anew."""
TITLES = {("compared", "x"): "a_title", ("compared", "y"): "b_title"}
"""Titles of axes that the page gives."""
CONFIG: dict[str, Any] = {
    "background": "transparent",
    "aria": False,
    "font": "inherit",
    "axis": {
        **dict.fromkeys(("labelColor", "titleColor", "tickColor", "domainColor", "gridColor"), INK),
        **dict.fromkeys(("labelFontSize", "titleFontSize"), 11),
        "titleFontWeight": "normal",
        **dict.fromkeys(("tickOpacity", "domainOpacity"), 0.5),
        "gridOpacity": 0.12,
        "labelOverlap": True,
    },
    "view": {"stroke": None},
}


@lru_cache(maxsize=1)
def chart_specifications() -> dict[str, dict[str, Any]]:
    """Vega specifications of every chart, by the name that the page asks for."""
    charts = {
        "atlas": _atlas(),
        "curves": _lines("mean dominant pair (0: fastest)", zero=False),
        "extensions": _lines("mean dominant pair (0: fastest)", zero=False),
        "whatif": _lines("mean score (attention score)", zero=False),
        "mass": _mass(),
        "pairs": _pairs(),
        "effects": _effects(),
        "compared": _compared(),
    }
    compiled = {
        name: vl_convert.vegalite_to_vega(chart.configure(**CONFIG).to_json(), vl_version="v6.1")
        for name, chart in charts.items()
    }
    for (name, axis), signal in TITLES.items():
        compiled[name].setdefault("signals", []).append({"name": signal, "value": axis})
        for drawn in compiled[name]["axes"]:
            if drawn["scale"] == axis and "title" in drawn:
                drawn["title"] = {"signal": signal}
    for (name, axis), (rows, fields) in DOMAINS.items():
        (scale,) = [scale for scale in compiled[name]["scales"] if scale["name"] == axis]
        scale["domain"] = {"fields": [{"data": rows, "field": field} for field in fields]}
        if name == "atlas":
            scale["domain"]["sort"] = True
    return compiled


@lru_cache(maxsize=1)
def vega_bundle() -> str:
    """Vega and its interpreter of expressions, which needs no `eval`: a script that makes `vegaEmbed`."""
    code: str = vl_convert.javascript_bundle("window.vegaEmbed=vegaEmbed;")
    return code.replace("</script", "<\\/script").replace("<!--", "<\\!--").strip()


def _rows(name: str) -> alt.NamedData:
    return alt.NamedData(name=name)


def _size(chart: Chart, height: int) -> Chart:
    return chart.properties(width=300, height=height, autosize=alt.AutoSizeParams(type="fit", contains="padding"))


def _distance(field: str = "distance:Q") -> alt.X:
    return alt.X(
        field,
        title="distance in tokens",
        scale=alt.Scale(type="symlog", constant=1, nice=False),
        axis=alt.Axis(values=DISTANCES, labelExpr="format(datum.value, datum.value < 1000 ? 'd' : '~s')", grid=False),
    )


def _own_colour() -> alt.Color:
    return alt.Color("colour:N", scale=None, legend=None)


def _dash() -> alt.StrokeDash:
    """Solid for the first run, other strokes for the next ones."""
    scale = alt.Scale(domain=[*range(len(DASHES))], range=[[*dash] for dash in DASHES])
    return alt.StrokeDash("dash:O", scale=scale, legend=None)


def _lines(title: str, *, zero: bool) -> Chart:
    """Lines over distance with bands behind them, and a rule at the training length."""
    y = alt.Y("value:Q", title=title, scale=alt.Scale(zero=zero))
    band = (
        alt.Chart(_rows("bands"))
        .mark_area(opacity=0.18)
        .encode(_distance(), alt.Y("low:Q", title=title), alt.Y2("high:Q"), _own_colour(), alt.Detail("series:N"))
    )
    line = (
        alt.Chart(_rows("lines"))
        .mark_line(strokeWidth=2, clip=False)
        .encode(
            _distance(),
            y,
            _own_colour(),
            alt.StrokeDash(
                "dash:O",
                scale=alt.Scale(domain=[0, 1, 2, 3], range=[[1, 0], [6, 3], [2, 2], [8, 3, 2, 3]]),
                legend=None,
            ),
            alt.Detail("series:N"),
        )
    )
    points = (
        alt.Chart(_rows("lines"))
        .mark_point(filled=True, size=50, opacity=0)
        .encode(_distance(), y, _own_colour(), tooltip=TEXT)
    )
    rule = (
        alt.Chart(_rows("marks"))
        .mark_rule(color=INK, strokeDash=[4, 4], opacity=0.7)
        .encode(alt.X("distance:Q"), tooltip=TEXT)
    )
    return _size(alt.layer(band, rule, line, points), 240)


def _atlas() -> Chart:
    """A cell for every head, layers from top to bottom, with frames around the chosen ones."""
    x = alt.X("head:O", title="head", axis=alt.Axis(labelAngle=0, orient="top"), scale=alt.Scale(padding=0))
    y = alt.Y("layer:O", title="layer", scale=alt.Scale(padding=0))
    cells = (
        alt.Chart(_rows("heads"))
        .mark_rect(cursor="pointer")
        .encode(
            x,
            y,
            alt.Fill("colour:N", scale=None),
            alt.Opacity("shown:Q", scale=None),
            tooltip=TEXT,
        )
    )
    chosen = alt.Chart(_rows("chosen")).encode(x, y)
    around = chosen.mark_rect(filled=False, stroke=INK, strokeWidth=5)
    frames = chosen.mark_rect(filled=False, strokeWidth=2.5).encode(alt.Stroke("colour:N", scale=None))
    cursor = (
        alt.Chart(_rows("cursor")).mark_rect(filled=False, stroke=INK, strokeWidth=1.5, strokeDash=[2, 2]).encode(x, y)
    )
    return _size(alt.layer(cells, around, frames, cursor), 400)


def _ranges() -> alt.X:
    return alt.X("range:O", title="distance in tokens", sort=alt.SortField("order"), axis=alt.Axis(labelAngle=-45))


def _mass() -> Chart:
    """Share of attention in each range of distances."""
    both = alt.Chart(_rows("lines")).encode(
        _ranges(), alt.Y("value:Q", title="share of attention"), _own_colour(), alt.Detail("series:N")
    )
    line = both.mark_line(strokeWidth=2).encode(_dash())
    points = both.mark_point(filled=True, size=40).encode(tooltip=TEXT)
    return _size(alt.layer(line, points), 220)


def _pairs() -> Chart:
    """Contribution of every rotary pair in every range of distances."""
    cells = (
        alt.Chart(_rows("cells"))
        .mark_rect()
        .encode(
            _ranges(),
            alt.Y("pair:O", title="rotary pair (0: fastest)"),
            alt.Fill("colour:N", scale=None),
            tooltip=TEXT,
        )
    )
    return _size(cells, 340)


def _effects() -> Chart:
    """The effect of ablating each head alone: all heads as ticks, the chosen ones as points with intervals."""
    y = alt.Y("study:N", axis=None, sort=None)
    x = alt.X("value:Q", title="effect of ablating the head alone")
    every = (
        alt.Chart(_rows("every"))
        .mark_tick(color=INK, opacity=0.25, size=22, cursor="pointer")
        .encode(x, y, tooltip=TEXT)
    )
    interval = (
        alt.Chart(_rows("chosen")).mark_rule(strokeWidth=2).encode(alt.X("low:Q"), alt.X2("high:Q"), y, _own_colour())
    )
    point = alt.Chart(_rows("chosen")).mark_point(filled=True, size=90).encode(x, y, _own_colour(), tooltip=TEXT)
    names = (
        alt.Chart(_rows("studies"))
        .mark_text(align="left", dy=-20, fontSize=11, color=INK)
        .encode(alt.XValue(0), y, alt.Text("study:N"))
    )
    return _size(alt.layer(every, interval, point, names), 150)


def _compared() -> Chart:
    """Every head's value in one run against that in the other, the chosen ones in colour, and the diagonal."""
    x = alt.X("a:Q", title="a", scale=alt.Scale(zero=False))
    y = alt.Y("b:Q", title="b", scale=alt.Scale(zero=False))
    every = (
        alt.Chart(_rows("every"))
        .mark_point(filled=True, size=22, color=INK, opacity=0.35, cursor="pointer")
        .encode(x, y, tooltip=TEXT)
    )
    diagonal = alt.Chart(_rows("diagonal")).mark_line(color=INK, opacity=0.5, strokeDash=[4, 4]).encode(x, y)
    chosen = (
        alt.Chart(_rows("chosen"))
        .mark_point(filled=True, size=110, opacity=1)
        .encode(x, y, _own_colour(), tooltip=TEXT)
    )
    return _size(alt.layer(diagonal, every, chosen), 300)


def specifications_json() -> str:
    """All specifications as JSON."""
    return json.dumps(chart_specifications(), separators=(",", ":"))
