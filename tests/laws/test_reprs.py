"""Every record saves, loads, becomes a table, prints in a line and shows itself, whatever a model or task is called."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch

import positional_heads as ph
from positional_heads.bridge.rotary_layer import RotaryLayer, RotaryModel
from positional_heads.results.record import Record
from positional_heads.results.stability import Stability
from positional_heads.results.tables import result_html, table_html, title
from positional_heads.results.task import TaskResult
from positional_heads.results.text import printable
from positional_heads.studies.tasks.task import AnswerTask, Example
from tests.support.planted_pairs import planted_manipulation
from tests.support.planted_plans import SHAPE, planted_plans
from tests.support.synthetic import synthetic_scores
from tests.support.synthetic_distances import synthetic_distances
from tests.support.synthetic_emergence import planted_emergence
from tests.support.synthetic_examples import synthetic_examples
from tests.support.synthetic_profile import synthetic_profile
from tests.support.synthetic_recommendation import planted_recommendation
from tests.support.synthetic_studies import LAYERS, all_heads, planted_extrapolation, planted_jumps, planted_study

HOSTILE = "</td><script>alert(1)</script>\0\ud800 <img src=x onerror=alert(2)> & $x_{"


class Page(HTMLParser):
    """Elements and text of a page, as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[list[str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in {"td", "th"}:
            self.cells[-1].append("")

    def handle_data(self, data):
        self.text += data
        if self.cells and self.tags[-1] in {"td", "th"} and data.strip():
            self.cells[-1][-1] += data


def study(name: str = "planted"):
    effects = np.full((LAYERS, 8), -0.1)
    made = planted_study(effects, effects, all_heads(), n_random=3, units=6)
    return replace(made, task=name, provenance=made.provenance | {"model": {"name": name}})


def task_result(name: str = "passkey") -> TaskResult:
    rows = [{"reach": "long"}, {"reach": "short"}, {"reach": "long"}]
    measures = {"log_prob": torch.tensor([-1.0, -0.5, -2.0]).double()}
    return TaskResult(name, rows, measures, {"log_prob": -2.0}, {"model": {"name": name}})


def profile(name: str = "planted") -> ph.ContributionProfile:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    counts, edges = torch.tensor([[5, 4, 3], [5, 4, 3]]), torch.tensor([0, 1, 2, 3])
    heads, frequencies = [ph.Head(0, 1), ph.Head(1, 0)], torch.ones(2, 4, dtype=torch.float64)
    return ph.ContributionProfile(heads, mean, mean[:, 0], counts, edges, frequencies, {"model": {"name": name}})


def comparison(name: str = "planted") -> ph.Comparison:
    return ph.compare(synthetic_scores(name=name), synthetic_scores(seed=1, name=name), names=["first", name])


def stability(name: str = "planted") -> Stability:
    return ph.compare_all({"first": synthetic_scores(name=name), name: synthetic_scores(seed=1, name=name)})


def head_plan(name: str = "planted") -> ph.HeadPlan:
    by = printable(name.strip()[:50], newlines=False), torch.arange(6).view(3, 2).double()
    made = ph.window_plan(synthetic_profile(), by=by)
    return replace(made, provenance=made.provenance | {"model": {"name": name}})


def pair_plan(name: str = "planted") -> ph.PairPlan:
    by = printable(name.strip()[:50], newlines=False), torch.arange(24).view(3, 2, 4).double()
    made = ph.pair_plan(synthetic_profile(), by=by)
    return replace(made, provenance=made.provenance | {"model": {"name": name}})


def distance_response(name: str = "planted") -> ph.DistanceResponse:
    sums = torch.rand(3, 3, 5, 3, 4, generator=torch.Generator().manual_seed(0)).double() + 1
    sums[..., 2, :] = torch.nan
    pairs, scores = torch.zeros(3, 3, 4, 2).long(), synthetic_scores(name=name)
    factors = torch.tensor([0.5, 1.0, 2.0]).double()
    return ph.DistanceResponse(sums, torch.ones_like(sums), factors, pairs, scores, {"model": {"name": name}})


def plan_study(name: str = "planted") -> ph.PlanStudy:
    costs = np.arange(24).reshape(SHAPE) / 100
    return planted_plans(costs, {"good": costs}, budgets=(0.5,), units=6, n_random=3, name=name)


def manipulation(name: str = "planted") -> ph.ManipulationStudy:
    made = planted_manipulation(lambda *_: (0.1, 0.1), units=6, n_random=3, heads=8, name=name)
    return replace(made, task=name)


RECORDS = {
    "HeadScores": lambda name: synthetic_scores(name=name),
    "HeadProfile": lambda name: synthetic_profile(name=name),
    "DistanceProfile": lambda name: synthetic_distances(name=name),
    "DistanceResponse": distance_response,
    "AblationStudy": study,
    "ExtrapolationStudy": planted_extrapolation,
    "HeadExamples": lambda name: synthetic_examples((name, "b", "c"), name=name),
    "ContributionProfile": profile,
    "TaskResult": task_result,
    "Comparison": comparison,
    "Stability": stability,
    "HeadPlan": head_plan,
    "PairPlan": pair_plan,
    "PlanStudy": plan_study,
    "JumpStudy": planted_jumps,
    "ManipulationStudy": manipulation,
    "Recommendation": lambda name: planted_recommendation(name=name),
    "EmergenceStudy": lambda name: planted_emergence(name=name),
}


def returned():
    """Names of the records that public functions return."""
    verbs = [getattr(ph, name) for name in ph.__all__ if inspect.isfunction(getattr(ph, name))]
    answers = {inspect.signature(verb).return_annotation for verb in verbs}
    return {answer.__name__ for answer in answers if inspect.isclass(answer) and issubclass(answer, Record)}


def plain(value):
    """A record's content with numbers instead of tensors, so that equal ones compare as equal."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.nan_to_num(-9.0).tolist()
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value


def test_every_record_that_is_returned_is_tried():
    assert returned() == {*RECORDS}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_is_read_back_as_it_was_written(kind, tmp_path):
    record = RECORDS[kind]("a < b")
    file = record.save(tmp_path)
    assert file.parent == tmp_path
    for path in (file, tmp_path):
        assert plain(type(record).load(path)) == plain(record)
    assert type(record).load(file).save(tmp_path / "again").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_is_a_table_and_names_its_model(kind):
    record = RECORDS[kind]("some model")
    assert len(record.to_frame()) > 0
    pd.testing.assert_frame_equal(record.to_frame(), record.to_frame())
    assert record.model_name == "some model"


@pytest.mark.parametrize("kind", RECORDS)
def test_every_result_prints_in_one_short_line_without_tensors(kind):
    for name in ("plain", HOSTILE):
        printed = repr(RECORDS[kind](name))
        assert printed.startswith(f"{kind}(")
        assert "tensor" not in printed
        assert "\n" not in printed
        assert "\0" not in printed
        assert len(printed) < 400
        printed.encode()  # no lone surrogate


@pytest.mark.parametrize("kind", RECORDS)
def test_hostile_names_are_text_in_notebooks(kind):
    html = RECORDS[kind](HOSTILE)._repr_html_()
    page = Page(html)
    assert not {"script", "img", "style", "iframe"} & set(page.tags)
    assert set(page.tags) <= {"div", "p", "b", "table", "thead", "tbody", "tr", "td", "th", "details", "summary", "pre"}
    assert "<script>alert(1)</script>" in page.text
    assert "\0" not in html
    html.encode()


def test_scores_show_verdict_and_the_best_heads_first():
    scores = synthetic_scores()
    page = Page(scores._repr_html_())
    assert scores.verdict in page.text
    assert page.cells[0][:3] == ["head", "rho", "low 95 %"]
    assert [row[0] for row in page.cells[1:4]] == ["L0H3", "L1H0", "L1H1"]
    assert page.cells[1][1] == "0.400"
    assert len(page.cells) == 1 + 8
    assert '"null_repeats": 6' in page.text
    expected = "HeadScores(made up: 3 layers of 4 heads, 8 with a score, 5 sequences of up to 9 tokens, 6 shuffles; "
    assert repr(scores) == expected + "highest rho: L0H3 0.400, L0H2 0.200, L1H3 0.150)"
    assert repr(scores.null) == "NullScores(6 shuffles of 3 layers of 4 heads)"


def test_scores_print_and_show_without_null_score_or_provenance():
    bare = replace(synthetic_scores(null=False), rho=torch.full((3, 4), torch.nan).double(), provenance={})
    expected = "HeadScores(a model: 3 layers of 4 heads, 0 with a score, ? sequences of up to 9 tokens, no shuffles; "
    assert repr(bare) == expected + "highest rho: none)"
    page = Page(bare._repr_html_())
    assert page.cells == []
    assert bare.verdict in page.text


def test_studies_show_their_own_tables():
    made = study()
    page = Page(made._repr_html_())
    contrasts = made.contrasts()
    assert page.cells[0] == [title(column) for column in contrasts]
    assert [row[2] for row in page.cells[1:]] == [f"{value:.3f}" for value in contrasts["top"]]
    assert made.verdict in page.text
    assert "changes of log_prob" in page.text
    extrapolation = planted_extrapolation()
    page = Page(extrapolation._repr_html_())
    assert [row[0] for row in page.cells[1:]] == extrapolation.labels
    assert extrapolation.verdict in page.text


def test_a_task_result_prints_means_by_range_and_the_score_of_a_guess():
    expected = "TaskResult(passkey: 3 answers, a guess gives log_prob -2.000; long range: log_prob -1.500; "
    assert repr(task_result()) == expected + "short range: log_prob -0.500)"
    assert Page(task_result()._repr_html_()).cells[1:] == [["long", "-1.500"], ["short", "-0.500"]]


def test_long_tables_report_how_many_rows_are_shown():
    frame = pd.DataFrame({"value": [1.0, np.nan, 3.0]})
    page = Page(result_html("Kind", "line", None, frame, rows=2))
    assert page.cells == [["value"], ["1.000"], ["-"]]
    assert "The first 2 of 3 rows." in page.text
    assert "The first" not in result_html("Kind", "line", None, frame, rows=3)
    assert Page(table_html(pd.DataFrame({"<b>": ["a<i>\0", None]}))).cells[:2] == [["<b>"], [r"a<i>\x00"]]


def test_a_rotary_model_groups_layers_that_rotate_alike():
    one = RotaryLayer(0, "hook", "half", "half", 32, 64, 8, 0.125, None, "scores", 0.0)
    layers = {layer: replace(one, layer=layer) for layer in (0, 1, 2, 4)} | {5: replace(one, layer=5, rotary_dim=16)}
    expected = (
        "RotaryModel(layers 0-2, 4: 16 half pairs in 8 heads of 64 channels; "
        "layers 5: 8 half pairs in 8 heads of 64 channels; layers 3: not scored, it has no rotary embedding)"
    )
    assert repr(RotaryModel(layers, {3: "it has no rotary embedding"})) == expected


def test_tasks_and_examples_print_no_tokens():
    example = Example(torch.arange(500), ((490, 495), (495, 500)), 3, "short", 0.5)
    assert repr(example) == "Example(500 tokens, answers at 490 to 494, 495 to 499, unit 3, short range, depth 0.5)"
    many = replace(example, answers=tuple((start, start + 1) for start in range(9)), depth=None)
    assert "0 to 0, 1 to 1, 2 to 2 and 6 more, unit 3, short range)" in repr(many)
    task = AnswerTask("kv", (example, example), (), {}, {"length": 500, "text": "x" * 1000})
    assert re.fullmatch(r"AnswerTask\('kv': 2 examples of up to 500 tokens, \{.{20,100}\}\)", repr(task))


def test_an_extension_prints_its_method(tiny):
    with ph.extended_rope(tiny("llama"), "linear", factor=2) as extension:
        assert repr(extension) == "Extension(linear, {'factor': 2}; 2 layers trained on 256 tokens)"


def test_names_can_be_completed():
    from positional_heads import views

    assert {"rho_heat_map", "contribution_by_distance", "method_comparison"} <= set(dir(views))
    assert set(views.__all__) <= set(dir(views))
    offered = {name for name in dir(ph) if not name.startswith("_")}
    assert {*ph.__all__, "views"} <= offered
    assert not {"Any", "TYPE_CHECKING", "import_module"} & offered
