"""Pictures and tables show the record's own numbers."""

import io

import numpy as np
import pytest

from positional_heads.heads import Head
from positional_heads.tables import heads_table, summary_line
from positional_heads.views import allocation_curves, rho_heat_map
from tests.synthetic import synthetic_scores


def test_the_heat_map_shows_rho_and_dots_what_is_significant():
    scores = synthetic_scores()
    axes = rho_heat_map(scores).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), scores.rho.numpy())
    dots = axes.collections[0].get_offsets().round()
    assert dots.tolist() == [[3.0, 0.0]]
    assert [text.get_text() for text in axes.texts[-4:]] == ["n/a"] * 4
    assert axes.images[0].norm.vcenter == 0


def test_curves_are_the_records_curves_with_their_null():
    scores = synthetic_scores()
    figure = allocation_curves(scores, [Head(0, 3), Head(1, 1)])
    for panel, head in zip(figure.axes, [Head(0, 3), Head(1, 1)], strict=True):
        assert panel.get_title().startswith(str(head))
        np.testing.assert_array_equal(panel.lines[0].get_ydata(), scores.curve[head].numpy())
        np.testing.assert_array_equal(panel.lines[1].get_ydata(), scores.null.curve_mean[head].numpy())


@pytest.mark.parametrize("head", [Head(3, 0), Head(0, 4), Head(-1, 0)])
def test_heads_that_do_not_exist_are_refused(head):
    with pytest.raises(ValueError, match=f"{head} does not exist: layers go from 0 to 2, heads to 3"):
        allocation_curves(synthetic_scores(), [head])


@pytest.mark.parametrize("null", [True, False])
@pytest.mark.parametrize("name", ["a $broken^ name", "<script>alert(1)</script>"])
def test_plots_draw_whatever_the_model_is_called(null, name):
    scores = synthetic_scores(null=null, name=name)
    for figure in (rho_heat_map(scores), allocation_curves(scores)):
        figure.savefig(buffer := io.BytesIO(), format="png")
        assert buffer.getvalue().startswith(b"\x89PNG")
    assert name in rho_heat_map(scores).axes[0].get_title()


def test_the_table_ranks_heads_and_leaves_out_those_without_a_score():
    rows = synthetic_scores().to_frame().replace({np.nan: None}).to_dict("records")
    lines = heads_table(rows, 20).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["L0H3", "L0H2", "L1H3"]
    assert len(lines) == 9
    assert heads_table(rows, 2, markdown=True).splitlines()[1] == "|" + " --- |" * 8


def test_the_summary_names_model_and_data():
    line = summary_line(synthetic_scores().provenance)
    assert line == "made up: 3 layers of 4 heads, 5 sequences of up to 9 tokens, 6 shuffles, seed 0"
