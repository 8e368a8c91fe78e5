"""Records keep their numbers on disk, become tables of their own numbers, and compute each table once."""

import numpy as np
import pandas as pd
import pytest
import torch

import positional_heads as ph
from positional_heads.cli import app
from positional_heads.core.heads import Head
from positional_heads.results import effects, extrapolation
from positional_heads.results.files import ResultFileError
from positional_heads.results.profile import ContributionProfile
from positional_heads.results.record import computed_once
from positional_heads.results.task import TaskResult
from positional_heads.views.report.folder import write_report
from tests.support.synthetic import synthetic_scores
from tests.support.synthetic_examples import synthetic_examples
from tests.support.synthetic_studies import LAYERS, all_heads, planted_extrapolation, planted_study


def study():
    return planted_study(np.full((LAYERS, 8), -0.1), np.zeros((LAYERS, 8)), all_heads(), n_random=3, units=6)


def profile():
    """Two heads, three pairs, ranges of 1, 1, 2 and 4 tokens."""
    mean = torch.arange(24, dtype=torch.float64).reshape(2, 3, 4)
    return ContributionProfile(
        heads=[Head(0, 1), Head(2, 0)],
        mean=mean,
        unrotated=100 + torch.arange(8, dtype=torch.float64).reshape(2, 4),
        pair_counts=torch.tensor([[8, 7, 11, 10], [4, 3, 2, 1]]),
        edges=torch.tensor([0, 1, 2, 4, 8]),
        frequencies=torch.ones(2, 3, dtype=torch.float64),
        provenance={"model": {"name": "made up"}},
    )


def task_result():
    measures = {"log_prob": torch.tensor([-1.0, -0.5]).double(), "exact": torch.tensor([0.0, 1.0]).double()}
    rows = [{"unit": 0, "reach": "long"}, {"unit": 0, "reach": "short"}]
    return TaskResult("passkey", rows, measures, {"log_prob": -2.0}, {"model": {"name": "made up"}})


RECORDS = {
    "scores.safetensors": synthetic_scores,
    "study.safetensors": study,
    "extrapolation.safetensors": planted_extrapolation,
    "examples.safetensors": synthetic_examples,
    "profile.safetensors": profile,
    "task.safetensors": task_result,
}


@pytest.mark.parametrize("file_name", RECORDS)
def test_a_record_comes_back_from_its_folder(tmp_path, file_name):
    record = RECORDS[file_name]()
    assert record.save(tmp_path / "folder") == tmp_path / "folder" / file_name
    loaded = type(record).load(tmp_path / "folder")
    assert loaded._content() == record._content()
    assert loaded._tensors().keys() == record._tensors().keys()
    for name, tensor in record._tensors().items():
        torch.testing.assert_close(loaded._tensors()[name], tensor, rtol=0, atol=0, equal_nan=True)
    pd.testing.assert_frame_equal(loaded.to_frame(), record.to_frame())


def test_a_file_of_one_kind_is_not_read_as_another(tmp_path):
    file = profile().save(tmp_path / "any.safetensors")
    with pytest.raises(ph.ResultFileError, match=r"not a positional_heads\.HeadScores"):
        ph.HeadScores.load(file)


def test_a_profile_has_one_row_per_head_pair_and_range():
    table, made = profile().to_frame(), profile()
    assert len(table) == 2 * (3 + 1) * 4
    row = table[(table["name"] == "L2H0") & (table["pair"] == 1) & (table["first_distance"] == 2)]
    assert row[["last_distance", "pair_count"]].to_numpy().tolist() == [[3, 2]]
    assert row["contribution"].tolist() == [made.mean[1, 1, 2]]
    rest = table[(table["name"] == "L0H1") & (table["pair"] == "unrotated")]
    assert rest["contribution"].tolist() == made.unrotated[0].tolist()


def test_examples_have_one_row_per_head_and_token():
    examples = synthetic_examples()
    table = examples.to_frame().set_index(["name", "position"])
    assert len(table) == len(examples.heads) * len(examples.tokens)
    row = table.loc[(str(examples.heads[1]), 3)]
    assert row["token"] == examples.tokens[3]
    for name in ("weighted_dominant", "plain_dominant", "mean_distance"):
        assert row[name] == pytest.approx(float(getattr(examples, name)[1, 3]))


def counted(monkeypatch, module, name):
    """The arguments of every call of a function from now on."""
    calls, function = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args: calls.append(args) or function(*args))
    return calls


def test_a_report_computes_each_table_of_a_study_once(tmp_path, monkeypatch):
    calls = counted(monkeypatch, effects, "unit_means")
    write_report(study(), tmp_path)
    assert len(calls) == 4 * 2  # effects, contrasts, by_head and by_set, at long and at short range


def test_a_report_fits_the_stretch_of_each_method_once(tmp_path, monkeypatch):
    calls = counted(monkeypatch, extrapolation, "stretch_between")
    made = planted_extrapolation()
    write_report(made, tmp_path)
    assert len(calls) == len(made.labels)


def test_a_table_that_was_changed_is_right_again_on_the_next_call():
    made = study()
    before = made.effects()
    changed = made.effects()
    changed["effect"] = 0
    pd.testing.assert_frame_equal(made.effects(), before)
    assert not made.effects(level=0.5)["low"].equals(before["low"])


def test_running_means_average_a_sixteenth_of_the_training_length():
    made = planted_extrapolation(trained=48, lengths=(64, 128))
    distance, means = made.running_means(0)
    curve = made.curves[0, :, :64]
    np.testing.assert_allclose(means, curve.unfold(1, 3, 1).mean(-1))
    assert distance.tolist() == list(range(1, 63))


@pytest.mark.parametrize("file_name", RECORDS)
def test_records_are_equal_where_they_are_the_same(file_name):
    record, other = RECORDS[file_name](), RECORDS[file_name]()
    assert record == record  # noqa: PLR0124
    assert record != other
    assert len({record, other}) == 2


def test_a_file_that_is_no_result_is_not_replaced(tmp_path):
    file = tmp_path / "notes.md"
    file.write_text("my own")
    with pytest.raises(ResultFileError, match=r"notes.md: exists already and is not a result file; choose another"):
        profile().save(file)
    assert file.read_text() == "my own"
    assert profile().save(profile().save(tmp_path)) == tmp_path / "profile.safetensors"


def test_the_command_line_names_the_kind_of_a_record_that_it_does_not_show(tmp_path):
    from typer.testing import CliRunner

    for record in (profile(), task_result()):
        file = record.save(tmp_path)
        shown = CliRunner().invoke(app, ["show", str(file)])
        assert shown.exit_code == 1
        assert f"this is a {type(record).__name__}: read it by {type(record).__name__}.load" in shown.output


class Tables:
    @computed_once
    def births(self, measure="rho", *, threshold=None):
        return pd.DataFrame({"measure": [measure], "threshold": [threshold]})


def test_a_table_asked_for_wrongly_is_refused_in_python_s_own_words():
    with pytest.raises(TypeError, match=r"births\(\) takes from 1 to 2 positional arguments but 3 were given"):
        Tables().births("rho", 2)
    with pytest.raises(TypeError, match=r"births\(\) got an unexpected keyword argument 'thresholds'"):
        Tables().births(thresholds=2)
    assert Tables().births("excess", threshold=2).to_dict("records") == [{"measure": "excess", "threshold": 2}]
