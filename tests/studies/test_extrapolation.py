"""The study's numbers are those of its parts, it saves and loads, and it refuses impossible settings."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

import positional_heads as ph
from positional_heads.bridge.active_extension import active_extension
from positional_heads.cli import app
from positional_heads.studies.dpe import dpe_key_pairs
from positional_heads.studies.extrapolation import base_sweep, extrapolation_study, long_rows
from positional_heads.studies.tasks.recall import passkey
from positional_heads.studies.tasks.task import AnswerTask
from positional_heads.views import distinguishability, extrapolation_curves

SMALL = {"training_length": 64, "depths": 2, "examples": 1, "sequences": 1}


@pytest.fixture(scope="module")
def study(bundled):
    methods = ["none", "linear", "self_extend"]
    return extrapolation_study(
        bundled, ph.bundled_text(), methods, [2, 4], heads=[ph.Head(0, 1), ph.Head(2, 4)], **SMALL
    )


@torch.no_grad()
def test_every_number_is_that_of_its_part_run_alone(study, bundled):
    assert study.labels == ["none", "none", "linear", "linear", "self_extend", "self_extend"]
    assert study.lengths == [128, 256] * 3
    tokens = torch.cat(
        [torch.tensor([bundled.tokenizer.bos_token_id]), ph.cut_text(bundled, ph.bundled_text())[0][1:256]]
    )
    with ph.extended_rope(bundled, "linear", 4.0, training_length=64):
        scores = ph.score_heads(bundled, tokens[None])
        far = ph.score_heads(bundled, tokens[None], min_distance=64)
        task = passkey(bundled, length=256, depths=2, examples=1)
        measured = task.measure(bundled)["log_prob"]
        losses = torch.nn.functional.cross_entropy(bundled(tokens[None])[0, 63:-1], tokens[64:])
    assert torch.allclose(study.curves[3, 1], scores.curve[2, 4], atol=2e-2)  # bins are placed on another pilot
    assert float(study.rho_beyond[3, 1]) == pytest.approx(float(far.rho[2, 4]), abs=1e-3)
    kept = [index for index, row in enumerate(task.rows) if row["reach"] == "long" and row["distance"] >= 64]
    assert kept
    assert float(study.performance["log_prob"][3]) == pytest.approx(float(measured[kept].mean()), abs=1e-4)
    assert float(study.performance["loss"][3]) == pytest.approx(float(losses), abs=1e-4)
    assert study.methods[3]["factor"] == 4


def test_the_table_and_the_link(study):
    table = study.to_frame()
    assert list(table["method"]) == study.labels
    efficiency = np.exp(study.performance["log_prob"].numpy() - study.plain["log_prob"])
    np.testing.assert_allclose(table["efficiency"], efficiency)
    link = study.link().set_index("measure")
    expected = stats.spearmanr(study.rho_beyond.mean(-1), efficiency).statistic
    assert link.loc["rho_beyond", "correlation"] == pytest.approx(expected)
    assert link[["low", "high"]].isna().all(axis=None)  # six points are too few for an interval
    assert "Rank correlation of allocation with efficiency" in study.verdict


def test_a_saved_study_is_read_back(study, tmp_path):
    study.save(tmp_path)
    back = ph.ExtrapolationStudy.load(tmp_path)
    assert torch.equal(back.curves.nan_to_num(-1), study.curves.nan_to_num(-1))
    assert back.verdict == study.verdict
    assert back.provenance == json.loads(json.dumps(study.provenance))


def test_the_plots_show_the_curves(study):
    figure = extrapolation_curves(study)
    assert len(figure.axes) == 4
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    smoothed = study.curves[5, 0, :256].unfold(0, 4, 1).mean(-1)
    np.testing.assert_allclose(lines["self_extend"], smoothed, atol=1e-9)
    axes = distinguishability(torch.tensor([1.0, 0.1]), 100).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [2 * np.pi, 20 * np.pi], rtol=1e-6)


def test_bases_can_be_swept(bundled):
    found = base_sweep(bundled, ph.bundled_text(), [10_000.0, 40_000.0], [2], heads=[ph.Head(0, 1)], **SMALL)
    assert found.labels == ["base (factor 1, base 10000)", "base (factor 1, base 40000)"]
    plain = extrapolation_study(bundled, ph.bundled_text(), ["none"], [2], heads=[ph.Head(0, 1)], **SMALL)
    assert torch.equal(found.curves[0].nan_to_num(-1), plain.curves[0].nan_to_num(-1))
    assert not torch.equal(found.curves[1].nan_to_num(-1), plain.curves[0].nan_to_num(-1))
    assert "Too few to say" in found.verdict
    with pytest.raises(ValueError, match="base 1 must be above 1"):
        base_sweep(bundled, ph.bundled_text(), [1])


BAD = {
    "factor": ({"factors": [1]}, "factor 1 must be above 1"),
    "no factor": ({"factors": []}, "nothing to study"),
    "method": ({"methods": ["ntkk"]}, "method 'ntkk' is unknown: did you mean ntk"),
    "method twice": ({"methods": ["yarn", "none", "yarn"]}, "methods names yarn twice: give each once"),
    "method under two names": ({"methods": ["ReRoPE", "rerope", "PI", "linear"]}, "names rerope, linear twice"),
    "method object twice": (
        {"methods": [ph.rope_method("p_rope", keep=0.5)] * 2},
        r"names p_rope \(keep 0.5.*\) twice",
    ),
    "factor twice": ({"factors": [2, 2.0]}, "factors names 2 twice: give each once"),
    "length twice": ({"factors": [2, 2.001]}, "factors names the length 128 twice"),
    "batch size": ({"batch_size": 0}, "batch_size 0 must be at least 1"),
    "method with settings": ({"methods": ["dpe"]}, "method 'dpe' needs .*window.*: choose of .*none, .*rope_method"),
    "task": ({"task": "perplexity"}, "no answers at known distances: choose one of passkey"),
    "near": ({"depths": [0.9], "factors": [1.5]}, "lies 64 tokens back or more"),
    "depth": ({"depths": [1.0]}, "depth 1.0 must be at least 0 .* and below 1"),
    "digits": ({"digits": 0}, "digits 0 must be at least 1"),
    "head": ({"heads": [ph.Head(9, 0)]}, "L9H0 does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_impossible_studies_are_refused_before_anything_is_run(case, bundled, monkeypatch):
    monkeypatch.setattr("positional_heads.studies.extrapolation.score_heads", None)
    monkeypatch.setattr(AnswerTask, "measure", lambda *_: pytest.fail("something was run"))
    settings, message = BAD[case]
    arguments = {"methods": ["none"], "factors": [2], **SMALL, **settings}
    with pytest.raises(ValueError, match=message):
        extrapolation_study(bundled, ph.bundled_text(), **arguments)


def test_methods_in_one_text_are_refused_with_the_list_to_write(bundled):
    with pytest.raises(TypeError, match=r"write \['none', 'yarn'\]$"):
        extrapolation_study(bundled, ph.bundled_text(), "none,yarn", [2], **SMALL)


def test_repeated_bases_are_refused(bundled):
    with pytest.raises(ValueError, match=r"base 10000\) twice: give each once"):
        base_sweep(bundled, ph.bundled_text(), [10_000, 10_000.0], [2], **SMALL)


def test_the_record_keeps_the_canonical_name_of_a_method(bundled):
    found = extrapolation_study(bundled, ph.bundled_text(), ["NONE"], [2], heads="L0H1", batch_size=1, **SMALL)
    assert found.labels == ["none"]
    assert "the plain model was not tried" not in found.verdict


def test_the_batch_size_reaches_the_task(bundled, monkeypatch):
    sizes = set()
    measure = AnswerTask.measure

    def measured(self, model, batch_size=None):
        sizes.add((self.name, batch_size))
        return measure(self, model, batch_size)

    monkeypatch.setattr(AnswerTask, "measure", measured)
    extrapolation_study(bundled, ph.bundled_text(), ["none"], [2], heads="L0H1", batch_size=1, **SMALL)
    assert ("passkey", 1) in sizes
    assert ("passkey", None) not in sizes


def test_latest_can_be_followed_beyond_the_training_length(bundled):
    found = extrapolation_study(
        bundled, ph.bundled_text(), ["none"], [2], task="latest", heads="L0H1", updates=2, **SMALL
    )
    assert found.provenance["task"]["name"] == "latest"
    assert found.performance["log_prob"].isfinite().all()


def test_too_short_a_text_is_refused(bundled):
    with pytest.raises(ValueError, match="the text has 7 tokens, a sequence at the largest factor needs 128"):
        extrapolation_study(bundled, "too few", ["none"], [2], training_length=64)
    with pytest.raises(ValueError, match="sequences of 100 tokens given, the largest factor needs 128"):
        extrapolation_study(bundled, torch.zeros(1, 100, dtype=torch.long), ["none"], [2], training_length=64)


def test_fewer_sequences_than_asked_for_are_said(bundled, caplog):
    assert long_rows(bundled, "in the beginning was the word " * 7, 64, 3).shape == (3, 64)
    assert caplog.text == ""
    assert long_rows(bundled, "in the beginning was the word " * 7, 64, 10**9).shape == (3, 64)
    assert "1000000000 sequences were asked for, the text holds 3 of 64 tokens: these are all" in caplog.text


@pytest.mark.usefixtures("undrawn")
def test_from_the_command_line(tmp_path):
    from typer.testing import CliRunner

    out = tmp_path / "out"
    arguments = ["extrapolate", "bundled", "--methods", "none,yarn", "--factors", "2", "--training-length", "64"]
    arguments += ["--depths", "2", "--examples", "1", "--sequences", "1", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert {file.name for file in out.iterdir()} == {
        *("extrapolation.safetensors", "extrapolation.csv", "link.csv", "extrapolation.png", "extrapolation.md"),
        *("told_apart.csv", "told_apart.png"),
    }
    shown = CliRunner().invoke(app, ["show", str(out)])
    assert ph.ExtrapolationStudy.load(out).verdict in shown.output
    refused = CliRunner().invoke(app, [*arguments, "--methods", "yarm", "--overwrite"])
    assert refused.exit_code == 1
    assert "did you mean yarn" in refused.output


@pytest.mark.parametrize(("options", "asked", "found"), [([], 2, 2), (["--in-order"], 2, 2), ([], 9, 3), ([], 1, 0)])
def test_the_command_draws_its_sequences_and_reads_no_more_of_a_text(options, asked, found, tmp_path, monkeypatch):
    """What the study is given, not what it does with it; a text with fewer whole sequences gives these, or none."""
    from typer.testing import CliRunner

    from positional_heads.bridge import text_sources
    from positional_heads.studies import extrapolation

    text = ph.bundled_text("code")[: {1: 700, 2: 120_000, 9: 2500}[asked]]
    (tmp_path / "text.txt").write_text(text)
    read, given = [], {}
    plain = text_sources.TextFile.read

    def reading(self, start, stop):
        read.append(stop - start)
        return plain(self, start, stop)

    def study(model, tokens, *rest, **settings):
        given.update(tokens=tokens, sequences=settings["sequences"])
        raise ValueError("that is all")

    monkeypatch.setattr(text_sources.TextFile, "read", reading)
    monkeypatch.setattr(extrapolation, "extrapolation_study", study)
    arguments = ["extrapolate", "bundled", "--text", str(tmp_path / "text.txt"), "--factors", "2,9", "--seed", "3"]
    arguments += ["--training-length", "80", "--sequences", str(asked), "--out", str(tmp_path / "out"), *options]
    result = CliRunner().invoke(app, arguments)
    assert ("error: that is all" if found else "error: no text holds a sequence of 720 tokens") in result.output
    if not found:
        return
    if options:
        assert given == {"tokens": text, "sequences": 2}
        return
    assert [len(piece) for piece in given["tokens"]] == [720] * found
    assert given["tokens"].drawn["seed"] == 3
    assert f"{found} sequences of at most 720 tokens drawn from 1 text at random (--seed 3; " in result.output
    assert asked != 2 or sum(read) < 90_000  # of 120 kB; 65 kB are looked at before the model is loaded


def test_what_pairs_tell_apart_follows_the_methods_frequencies(study):
    table = study.told_apart()
    assert len(table) == 6 * 16
    plain, linear = (table[(table["method"] == name) & (table["length"] == 256)] for name in ("none", "linear"))
    np.testing.assert_allclose(linear["wavelength"].to_numpy(), 4 * plain["wavelength"].to_numpy(), rtol=1e-6)


@torch.no_grad()
def test_key_pairs_have_the_largest_products_of_norms(tiny):
    model = tiny("llama")
    tokens = torch.randint(256, (2, 30), generator=torch.Generator().manual_seed(0))
    found = dpe_key_pairs(model, tokens, keep=0.5)
    _, cache = model.run_with_cache(tokens)
    q, k = (cache[f"blocks.1.attn.hook_{name}"].numpy() for name in "qk")  # before rotation
    for head in range(4):
        key_head = head * k.shape[2] // 4
        weight = [
            np.mean(
                np.hypot(q[:, :, head, pair], q[:, :, head, pair + 8])
                * np.hypot(k[:, :, key_head, pair], k[:, :, key_head, pair + 8])
            )
            for pair in range(8)
        ]
        assert set(np.flatnonzero(found[1][head])) == set(np.argsort(weight)[-4:])
    with pytest.raises(ValueError, match="keep 0 must be above 0"):
        dpe_key_pairs(model, tokens, keep=0)


def test_a_sweep_takes_the_best_group_of_each_range(bundled, monkeypatch):
    from positional_heads.studies import dpe

    tried = []

    class Planned:
        measures = ("log_prob",)

        def measure(self, model):
            groups = active_extension(model).method.pair_groups
            tried.append(groups)
            # as if the fastest range bore no groups, and the slowest were best with the largest
            return {"log_prob": torch.tensor([-abs(groups[0] - 1.0) + groups[15] / 10])}

    monkeypatch.setattr(dpe, "make_task", lambda *_, **__: Planned())
    found = dpe.dpe_sweep(bundled, 2048, window=128, ranges=4)
    assert found.pair_groups[:4] == (1,) * 4
    assert found.pair_groups[12:] == (8,) * 4
    assert len(tried) == 4 * 3 + 1  # 1, 2, 4, 8 in each of four ranges; all have 8 only once
    assert all(groups.count(8) >= 12 for groups in tried)  # the others are held at twice the factor
    with pytest.raises(ValueError, match="16 pairs cannot be split into 5 equal ranges"):
        dpe.dpe_sweep(bundled, 1024, ranges=5)


def test_an_interrupted_study_is_resumed_with_the_same_result(study, bundled, tmp_path, monkeypatch):
    from positional_heads.studies import extrapolation

    arguments = {"methods": ["none", "linear", "self_extend"], "factors": [2, 4], "heads": study.heads, **SMALL}
    measured, plain = [], extrapolation._performance

    def dies(*given):
        measured.append(given)
        if len(measured) == 4:
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(extrapolation, "_performance", dies)
    with pytest.raises(KeyboardInterrupt):
        extrapolation_study(bundled, ph.bundled_text(), checkpoint=tmp_path, **arguments)
    found = extrapolation_study(bundled, ph.bundled_text(), checkpoint=tmp_path, **arguments)
    assert len(measured) == 4 + 1 + 4  # plain and two of six before; plain and four after
    assert torch.equal(found.curves.nan_to_num(-1), study.curves.nan_to_num(-1))
    assert torch.equal(found.performance["log_prob"], study.performance["log_prob"])
    with pytest.raises(ValueError, match="parts of another study"):
        extrapolation_study(bundled, ph.bundled_text()[9:], checkpoint=tmp_path, **arguments)
