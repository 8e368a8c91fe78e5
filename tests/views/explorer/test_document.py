"""Every number of the explorer's document is that of a result, as plain Python finds it there."""

import json
import math
import re
from dataclasses import replace
from itertools import pairwise

import jsonschema
import pytest
import torch

import positional_heads as ph
from positional_heads.core.heads import Head
from positional_heads.results.files import ResultFileError
from positional_heads.results.pair_statistics import PairStatistics
from positional_heads.views.explorer import by_distance
from positional_heads.views.explorer import document as documents
from positional_heads.views.explorer.document import explorer_document, schema
from positional_heads.views.explorer.numbers import numbers
from positional_heads.views.explorer.runs import given_runs
from tests.support.explored_results import controlled_scores, named, several_results, studied_results
from tests.support.synthetic import synthetic_scores
from tests.support.synthetic_comparison import scores_of_groups
from tests.support.synthetic_examples import HOSTILE, synthetic_examples
from tests.support.synthetic_profile import synthetic_profile
from tests.support.synthetic_studies import planted_study

VALIDATOR = jsonschema.Draft202012Validator(schema())


@pytest.fixture(scope="module")
def several():
    return several_results()


@pytest.fixture(scope="module")
def document(several):
    return ph.explore(several).document


@pytest.fixture(scope="module")
def studied():
    return studied_results()


@pytest.fixture(scope="module")
def studies(studied):
    return ph.explore(studied).document


def same(given, expected):
    """Whether a number of the document is this one to five digits; null where it is NaN or infinite."""
    if expected is None or not math.isfinite(expected):
        return given is None
    return given == pytest.approx(expected, rel=1e-4, abs=1e-12)


def all_same(given, expected):
    given, expected = list(given), list(expected)
    return len(given) == len(expected) and all(map(same, given, expected))


def measures(document, run):
    return {one["name"]: one for one in document["measures"] if one["run"] == run}


def strings(value):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("which", ["document", "studies"])
def test_a_document_is_strict_json_that_fits_its_schema(which, request):
    made = request.getfixturevalue(which)
    VALIDATOR.check_schema(schema())
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert [f"{list(error.absolute_path)}: {error.message}" for error in VALIDATOR.iter_errors(made)] == []


def test_the_schema_describes_every_field_and_refuses_what_is_none(document):
    undescribed = []

    def look(part, path):
        for name, inner in part.get("properties", {}).items():
            undescribed.extend([] if inner.get("description") or "$ref" in inner else [(*path, name)])
            look(inner, (*path, name))
        further = [part["items"]] if "items" in part else []
        for inner in [*further, *part.get("anyOf", []), *part.get("patternProperties", {}).values()]:
            look(inner, path)

    for name, part in {"": schema(), **schema()["$defs"]}.items():
        look(part, (name,))
    assert undescribed == []
    for broken in (
        {"version": 2},
        {"heads": ["4.1"]},
        {"measures": [{**document["measures"][0], "values": ["0.1"]}]},
        {"details": {"L0H0": {"curve": {}}}},
    ):
        assert not VALIDATOR.is_valid({**document, **broken}), broken


def test_runs_have_ids_names_and_what_was_run(document):
    shown = [(one["id"], one["name"], one["kind"], one["text"], one["file"]) for one in document["runs"]]
    assert shown == [
        ("run-1", "scores", "HeadScores", "prose", None),
        ("run-2", "other", "HeadScores", "code", None),
        ("run-3", "profile", "HeadProfile", "prose", None),
        ("run-4", "distances", "DistanceProfile", "prose", None),
        ("run-5", "compared", "Comparison", None, None),
        ("run-6", "texts", "HeadExamples", None, None),
    ]
    assert document["title"] == "made up on prose"
    assert document["model"] == {"name": "made up", "layers": 3, "heads": 4, "training_length": 16}
    assert document["heads"] == [f"L{layer}H{head}" for layer in range(3) for head in range(4)]
    assert set(document["details"]) == set(document["heads"])


def test_measures_of_scores_are_those_of_their_table(document, several):
    for run, name in (("run-1", "scores"), ("run-2", "other")):
        scores, found = several[name], measures(document, run)
        frame = scores.to_frame()
        columns = ("rho", "rho_curve", "excess", "null_mean", "z", "p_value", "q_value")
        for column in columns:
            assert all_same(found[column]["values"], frame[column]), column
        assert all_same(found["rho"]["intervals"]["low"], frame["low"])
        assert all_same(found["rho"]["intervals"]["high"], frame["high"])
        scored = [not math.isnan(rho) for rho in frame["rho"]]
        positional = {str(head) for head in scores.positional_heads(alpha=0.05)}
        assert found["beats_null"]["values"] == [
            int(head in positional) if there else None for head, there in zip(frame["name"], scored, strict=True)
        ]
        assert found["stays"]["values"] == [
            int(bool(stays)) if there else None for stays, there in zip(frame["stays"], scored, strict=True)
        ]
        assert "without the first 64 keys" in found["stays"]["meaning"]
        assert {name for name, one in found.items() if one["lower"]} == {"p_value", "q_value"}
    assert 1 in measures(document, "run-1")["beats_null"]["values"]


def test_measures_of_a_profile_are_those_of_its_table_and_its_scores_are_not_repeated(document, several):
    frame, found = several["profile"].to_frame(), measures(document, "run-3")
    assert set(found) == set(several["profile"].names) - {"rho", "rho_curve", "excess"}
    for name, one in found.items():
        assert all_same(one["values"], frame[name]), name
        assert (one["intervals"] is None) == (f"{name}_low" not in frame), name
        for end in ("low", "high") if one["intervals"] else ():
            assert all_same(one["intervals"][end], frame[f"{name}_{end}"]), name
    assert found["reach"]["unit"] == "tokens"
    assert found["sink_mass"]["meaning"] == "Share of the attention on the first keys."
    assert any("profile" in note and "shown once" in note for note in document["notes"])
    assert [one["run"] for one in document["curves"]] == ["run-1", "run-2"]
    assert document["is"][0] == several["profile"].name(Head(0, 0))
    assert document["is"][8:] == ["not profiled"] * 4
    assert document["names"][5] == (several["profile"].labels[Head(1, 1)] or ["mixed"])
    assert document["names"][8:] == [[]] * 4


def test_measures_of_distances_are_those_of_its_table(document, several):
    frame, found = several["distances"].to_frame().set_index("name"), measures(document, "run-4")
    for name, one in found.items():
        for head, value in zip(document["heads"], one["values"], strict=True):
            assert same(value, frame[name][head] if head in frame.index else None), (name, head)


def test_meanings_are_sentences_without_names_of_columns(document, studies):
    for one in [*document["measures"], *studies["measures"]]:
        said = one["meaning"]
        assert said[0].isupper() or said.startswith("1 if "), said
        assert said.endswith("."), said
        assert not re.findall(r"[a-z]+_[a-z]+", said.replace("log_prob", "")), said  # the task's measure


def test_colours_have_the_range_of_the_data(document, studies):
    for one in [*document["measures"], *studies["measures"]]:
        known = [value for value in one["values"] if value is not None]
        assert one["low"] < one["high"], one["id"]
        assert all(one["low"] <= value <= one["high"] for value in known), one["id"]
        if one["scale"] == "diverging":
            assert one["low"] == -one["high"]
            assert max(map(abs, known), default=1) in {one["high"], 0}, one["id"]
        elif one["scale"] == "flag":
            assert set(known) <= {0, 1}
        elif min(known, default=0) < max(known, default=0):
            assert (one["low"], one["high"]) == (min(known), max(known))


def binned(values, counts, edges):
    """Weighted means over ranges, by plain sums; None where nothing counts."""
    means = []
    for first, beyond in pairwise(edges):
        rows = [(values[at], counts[at]) for at in range(first, beyond) if not math.isnan(values[at]) and counts[at]]
        total = math.fsum(count for _, count in rows)
        means.append(math.fsum(value * count for value, count in rows) / total if rows else None)
    return means


@pytest.mark.parametrize("length", [9, 700])
def test_a_curve_is_the_mean_over_query_key_pairs_of_each_range(length):
    generator = torch.Generator().manual_seed(length)
    scores = synthetic_scores()
    curve = 4 + torch.randn(3, 4, length, generator=generator, dtype=torch.float64)
    curve[0, 1, ::3], curve[0, 2, 4:], curve[2] = torch.nan, torch.nan, torch.nan
    counts = torch.randint(0, 5, (3, length), generator=generator)
    null = replace(scores.null, curve_mean=curve - 0.2, curve_sd=0.1 + curve.abs() / 50)
    scores = replace(scores, curve=curve, pair_counts=counts, null=null)
    document = ph.explore(scores).document
    (shared,) = document["curves"]
    edges = shared["edges"]
    assert (edges[0], edges[-1]) == (0, length)
    assert edges == sorted(set(edges))
    assert len(edges) <= 97
    assert shared["distance"] == [(first + beyond - 1) / 2 for first, beyond in pairwise(edges)]
    assert shared["null"].startswith("mean of the shuffles plus and minus 2 standard deviations of one shuffle at one")
    assert set(document["details"]["L2H0"]) == set()
    for layer in range(2):
        for head in range(4):
            drawn = document["details"][f"L{layer}H{head}"]["curves"]["run-1"]
            rows = [one[layer, head].tolist() for one in (curve, null.curve_mean, null.curve_sd)]
            mean, middle, spread = (binned(row, counts[layer].tolist(), edges) for row in rows)
            assert all_same(drawn["mean"], mean)
            for end, sign in (("null_low", -1), ("null_high", 1)):
                ends = [None if m is None else m + sign * 2 * s for m, s in zip(middle, spread, strict=True)]
                assert all_same(drawn[end], ends)


def test_without_a_null_there_is_no_band_and_rho_ranks():
    document = ph.explore(synthetic_scores(null=False)).document
    assert document["rank_by"] == "run-1/rho"
    assert document["curves"][0]["null"] is None
    assert document["details"]["L0H0"]["curves"]["run-1"]["null_low"] is None
    assert "no null was computed" in document["sentences"][0]
    assert set(measures(document, "run-1")) == {"rho", "rho_curve"}
    assert VALIDATOR.is_valid(document)


def test_scores_kept_without_curves_have_measures_only():
    document = ph.explore(synthetic_scores().without_curves()).document
    assert document["curves"] == []
    assert document["details"]["L0H0"] == {}
    assert document["rank_by"] == "run-1/excess"


def test_heads_are_ranked_by_the_first_excess_there_is(document):
    assert document["rank_by"] == "run-1/excess"
    mixed = ph.explore([synthetic_scores(null=False), synthetic_scores(seed=2)]).document
    assert mixed["rank_by"] == "run-2/excess"
    texts = ph.explore(named(synthetic_examples(), layers=1, heads=2)).document
    assert texts["rank_by"] == "run-1/recorded"  # or there would be nothing to colour heads by
    assert texts["measures"][0]["values"] == [float(bool(texts["details"][head])) for head in texts["heads"]]
    assert VALIDATOR.is_valid(texts)


def test_contributions_attention_and_wavelengths_are_those_of_the_profile(document, several):
    profile = several["profile"]
    (pairs,), masses = document["pairs"], {one["run"]: one for one in document["masses"]}
    assert pairs["edges"] == masses["run-3"]["edges"] == profile.edges.tolist()
    for at, head in enumerate(profile.heads):
        detail = document["details"][str(head)]
        if at >= 8:
            assert not {"contribution", "mass"} & set(detail) - {"mass"}
            assert "run-3" not in detail.get("mass", {})
            continue
        for pair, row in enumerate(detail["contribution"]["run-3"]):
            assert all_same(row, profile.pairs.contribution[head][pair].tolist())
        assert len(detail["contribution"]["run-3"]) == 4
        assert all_same(detail["mass"]["run-3"], profile.mass[head].tolist())
    for layer in range(2):
        assert all_same(pairs["frequency"][layer], [10000 ** -(pair / 4) for pair in range(4)])
        assert all_same(pairs["wavelength"][layer], [2 * math.pi * 10000 ** (pair / 4) for pair in range(4)])
    assert pairs["frequency"][2] == []


def test_a_pair_that_does_not_turn_has_no_wavelength_and_layers_may_have_fewer_pairs():
    profile = synthetic_profile()
    frequencies = profile.pairs.frequencies.clone()
    frequencies[0, 3], frequencies[1, 2:] = 0.0, torch.nan
    contribution = profile.pairs.contribution.clone()
    contribution[1, :, 2:] = torch.nan
    pairs = replace(profile.pairs, frequencies=frequencies, contribution=contribution)
    document = ph.explore(replace(profile, pairs=pairs)).document
    (shared,) = document["pairs"]
    assert shared["frequency"][0][3] == 0
    assert shared["wavelength"][0][3] is None
    assert len(shared["wavelength"][1]) == 2
    assert len(document["details"]["L1H0"]["contribution"]["run-1"]) == 2
    assert VALIDATOR.is_valid(document)


def test_effects_are_those_of_the_heads_ablated_alone(studies, studied):
    frame = studied["ablation"].by_head().set_index("name")
    assert [one["range"] for one in studies["effects"]] == ["long", "short", "long - short"]
    for one in studies["effects"]:
        reach = one["range"]
        for at, head in enumerate(studies["heads"]):
            known = head in frame.index
            assert same(one["values"][at], frame[reach][head] if known else None)
            assert same(one["intervals"]["low"][at], frame[f"{reach} low"][head] if known else None)
            assert same(one["intervals"]["high"][at], frame[f"{reach} high"][head] if known else None)
        assert one["unit"] == "nats per token"
        assert "negative is harm" in one["meaning"]
    found = measures(studies, "run-1")
    assert found["effect_long"]["values"] == studies["effects"][0]["values"]
    assert 0 < sum(value is None for value in found["effect_long"]["values"]) < 32


def test_a_study_of_sets_only_has_no_effects_of_heads():
    study = planted_study(*torch.zeros(2, 4, 8).numpy(), [Head(0, at) for at in range(8)], singles=0)
    document = ph.explore(study).document
    assert document["effects"] == []
    assert [(one["name"], {*one["values"]}) for one in document["measures"]] == [("recorded", {0.0})]
    assert document["sentences"] == [""] * 32


def test_results_of_other_weights_are_named_and_not_spoken_of_in_one_breath():
    profile, scores = synthetic_profile(), synthetic_scores(seed=3)
    for record, weights in ((profile, "a"), (profile.scores, "a"), (scores, "b")):
        record.provenance["model"] = record.provenance["model"] | {"weights": weights}
    document = ph.explore([profile, scores]).document
    assert any("of a model with other weights" in note for note in document["notes"])
    first = next(run["kind"] for run in document["runs"] if run["id"] == document["rank_by"].split("/")[0])
    alone = ph.explore(scores if first == "HeadScores" else profile).document
    assert document["sentences"] == alone["sentences"]
    assert document["is"] == alone["is"]


def test_extensions_have_the_curves_of_every_method(studies, studied):
    study = studied["extension"]
    (shared,) = studies["extensions"]
    assert shared["heads"] == ["L0H1", "L1H0"]
    assert len(set(shared["methods"])) == len(study.labels) + 1
    assert shared["training_length"] == studies["model"]["training_length"] == 32
    plain, *methods = shared["methods"]
    for at, head in enumerate(study.heads):
        curves = studies["details"][str(head)]["extension"]["run-2"]
        for row, method in enumerate(methods):
            values = study.curves[row, at].tolist()
            assert all_same(curves[method], binned(values, [1] * len(values), shared["edges"]))
            assert f"at {study.lengths[row]} tokens" in method
        values = [*study.plain_curves[at].tolist(), *[math.nan] * 96]
        assert all_same(curves[plain], binned(values, [1] * len(values), shared["edges"]))


def test_averaged_extensions_keep_their_distances(studied):
    document = ph.explore([studied["ablation"], studied["extension"].averaged(4)]).document
    (shared,) = document["extensions"]
    assert shared["edges"][0] == 0
    assert shared["edges"][-1] == 128
    assert all(edge % 4 == 0 for edge in shared["edges"])


def test_comparisons_are_those_of_the_table(document, several):
    frame = several["compared"].to_frame()
    (one,) = document["comparisons"]
    assert one["rows"][0]["a"] != one["rows"][0]["b"]
    assert one["names"] == ["prose", "code"]
    assert [row["name"] for row in one["rows"]] == ["rho", "excess"]
    assert measures(document, "run-5")["rho_change"]["meaning"] == "Rho, code minus prose."
    for row, column in zip(one["rows"], ("change", "excess_change"), strict=True):
        assert all_same(row["a"], frame[f"{row['name']}_a"])
        assert all_same(row["b"], frame[f"{row['name']}_b"])
        for key, ending in (("change", ""), ("low", "_low"), ("high", "_high"), ("q", "_q")):
            assert all_same(row[key], frame[f"{column}{ending}"])
        assert measures(document, "run-5")[f"{row['name']}_change"]["values"] == row["change"]
        assert measures(document, "run-5")[f"{row['name']}_change_q"]["values"] == row["q"]


NAMES = (*HOSTILE, "__proto__", "constructor", "javascript:window.pwned=1", "</title>")
PATHS = ("C:\\Users\\me\\models\\seven", "/home/me/models/seven")


def test_series_and_texts_are_those_of_their_runs(document, several):
    assert [one["run"] for one in document["series"]] == ["run-3"]
    assert [(one["id"], one["run"]) for one in document["texts"]] == [("text-6", "run-6")]
    profile = several["profile"]
    scale = {one["layer"]: one["scale"] for one in profile.provenance.get("rotary", [])}
    for head in profile.heads[:8]:
        found = document["details"][str(head)].get("series")
        if head.layer not in scale:
            assert found is None
            continue
        query, key = (center[head][0].tolist() for center in (profile.pairs.query_center, profile.pairs.key_center))
        product = complex(*query) * complex(*key).conjugate()
        factor = 1 if profile.pairs.attention_factor is None else float(profile.pairs.attention_factor[head])
        assert same(found["run-3"]["amplitude"][0], abs(product) * scale[head.layer] * factor**2)
    assert [head for head, detail in document["details"].items() if "texts" in detail] == document["texts"][0]["heads"]


def test_texts_have_the_room_that_all_else_leaves(several, monkeypatch):
    long = [named(synthetic_examples(["a"] * 40, seed=seed), layers=3, heads=4) for seed in range(2)]

    def made():
        document = ph.explore([several["scores"], *long]).document
        sizes = [
            sum(map(len, known.values()))
            for one in document["details"].values()
            for known in one.get("texts", {}).values()
        ]
        return [text["kept"] for text in document["texts"]], sum(sizes)

    whole = made()
    monkeypatch.setattr(documents, "LEAST_ROOM", 1000)
    assert made() == whole
    monkeypatch.setattr(documents, "MOST_CHARACTERS", 0)
    kept, size = made()
    assert all(fewer < all_keys for fewer, all_keys in zip(kept, whole[0], strict=True))
    assert size <= 2 * 1000 < whole[1]


def test_texts_of_other_weights_are_noted(several):
    other = named(several["texts"], weights="other")
    notes = ph.explore([several["scores"], other]).document["notes"]
    assert notes == ["texts is of a model with other weights than scores."]
    assert ph.explore([several["scores"], several["texts"]]).document["notes"] == []


def test_hostile_names_stay_text():
    made = {name: named(synthetic_scores(null=False), name) for name in NAMES}
    made["study"] = named(planted_study(*torch.zeros(2, 4, 8).numpy(), [], singles=0), "x")
    document = ph.explore(made, title="\u202e" + "".join(HOSTILE)).document
    assert VALIDATOR.is_valid(document)
    assert len({one["name"] for one in document["runs"]}) == len(NAMES)
    assert not [part for part in strings(document) if not part.isprintable()]


@pytest.mark.parametrize("path", PATHS)
def test_paths_stay_at_home(path):
    made = several_results(name=path)
    compared = ph.compare(made["scores"], made["other"], names=[f"{path}/a", f"{path}/b"])
    document = ph.explore(
        {path: made["scores"], f"{path}/2": made["other"], "x": made["profile"], "y": compared}
    ).document
    text = "\n".join(strings(document))
    assert not any(folder in text for folder in ("home", "Users", "models"))
    assert document["title"] == "seven on prose"
    assert document["comparisons"][0]["names"] == ["prose", "code"]
    assert "b against a" in document["runs"][3]["description"]


def test_runs_of_one_name_are_told_apart():
    scores = [controlled_scores(seed, text=text) for seed, text in ((0, "prose"), (3, "code"), (5, "code"))]
    document = ph.explore(scores).document
    assert [one["name"] for one in document["runs"]] == ["scores on prose", "scores on code (1)", "scores on code (2)"]


def test_a_folder_shows_every_run_of_one_shape_and_names_the_others(tmp_path, several):
    several["other"].save(tmp_path / "a" / "scores.safetensors")
    several["scores"].save(tmp_path / "b" / "scores.safetensors")
    several["profile"].save(tmp_path / "heads.safetensors")
    ph.window_plan(synthetic_profile(), 0.5, window=4).save(tmp_path / "plan" / "plan.safetensors")
    wide = scores_of_groups(torch.rand(5, 2, 6).double())
    wide.save(tmp_path / "wide" / "scores.safetensors")
    document = ph.explore(tmp_path).document
    # the scores of the profiled text come first
    assert [(one["name"], one["file"]) for one in document["runs"]] == [
        ("prose (b)", "b/scores.safetensors"),
        ("code (a)", "a/scores.safetensors"),
        ("prose (profile)", "heads.safetensors"),
    ]
    assert any("plan/plan.safetensors" in note for note in document["notes"])
    assert any("2 layers of 6 heads" in note and "wide/scores.safetensors" in note for note in document["notes"])
    assert str(tmp_path) not in json.dumps(document)


def test_files_of_several_texts_are_called_by_them(tmp_path, several):
    for folder, name in (("first", "scores"), ("code", "other"), ("first", "profile"), ("first", "distances")):
        several[name].save(tmp_path / folder)
    for folder in ("first", "code", "third"):
        several["texts"].save(tmp_path / folder)
    named = [one["name"] for one in ph.explore(tmp_path).document["runs"]]
    kinds = ("scores", "profile", "distances")
    assert sorted(named) == sorted(
        [*(f"prose (first): {kind}" for kind in kinds), "code: scores", "code: texts", "first: texts", "third"]
    )
    named = [one["name"] for one in ph.explore({"all": tmp_path, "one": str(tmp_path / "third")}).document["runs"]]
    assert sorted(named)[-2:] == ["all, third", "one"]
    for file in (tmp_path / "code").iterdir():
        file.unlink()
    assert not any("prose" in one["name"] for one in ph.explore(tmp_path).document["runs"])


def test_what_cannot_be_explored_is_refused(tmp_path, several):
    with pytest.raises(FileNotFoundError, match="no such folder; give the --out folder"):
        ph.explore(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no result that an explorer shows"):
        ph.explore(tmp_path)
    with pytest.raises(ValueError, match="no result given"):
        ph.explore([])
    with pytest.raises(FileNotFoundError, match="no such folder; give the --out folder"):
        ph.explore({"prose": tmp_path / "nowhere"})
    with pytest.raises(TypeError, match=r"HeadScores, HeadProfile, .*; got HeadPlan$"):
        ph.explore(ph.window_plan(synthetic_profile(), 0.5, window=4))
    with pytest.raises(ValueError, match="do not say how many layers"):
        ph.explore(synthetic_examples())
    file = several["scores"].save(tmp_path / "scores.safetensors")
    with pytest.raises(FileNotFoundError, match=r"scores.safetensors: is a file; give its folder"):
        ph.explore(file)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ResultFileError, match="damaged"):
        ph.explore(tmp_path)


def test_a_thousand_heads_of_64_pairs_stay_below_eleven_megabytes():
    profile = synthetic_profile()
    layers, heads, pairs, ranges, length = 25, 40, 64, 23, 2048

    def drawn(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    scores = profile.scores
    null = replace(
        scores.null,
        rho=drawn(6, layers, heads),
        curve_mean=drawn(layers, heads, length),
        curve_sd=drawn(layers, heads, length),
    )
    scores = replace(
        scores,
        **{name: drawn(layers, heads) for name in ("rho", "rho_curve", "bound")},
        curve=20 + drawn(layers, heads, length),
        pair_counts=torch.ones(layers, length, dtype=torch.long),
        frequencies=drawn(layers, pairs).abs(),
        null=null,
        bootstrap_rho=drawn(20, layers, heads),
        reasons={},
    )
    statistics = PairStatistics(
        frequencies=drawn(layers, pairs).abs(),
        **{name: drawn(layers, heads, pairs) for name in ("query_norm", "key_norm", "agreement")},
        **{name: drawn(layers, heads, pairs, 2) for name in ("query_center", "key_center")},
        contribution=drawn(layers, heads, pairs, ranges),
        unrotated=drawn(layers, heads, ranges),
        counts=torch.randint(1, 99, (layers, ranges)),
    )
    profile = replace(
        profile,
        scores=scores,
        sums={name: drawn(5, layers, heads) for name in profile.sums},
        weights={name: drawn(5, layers, heads).abs() for name in profile.sums},
        others={name: drawn(layers, heads) for name in profile.others},
        mass=drawn(layers, heads, ranges),
        reached=drawn(layers, heads, ranges),
        edges=torch.arange(ranges + 1),
        pairs=statistics,
        key_heads=torch.zeros(layers, heads, dtype=torch.long),
    )
    document = explorer_document(given_runs([profile]))
    assert len(json.dumps(document, separators=(",", ":"))) < 11_000_000
    edges = document["pairs"][0]["edges"]
    assert by_distance.FEWEST_RANGES <= len(edges) - 1 < ranges
    row = document["details"]["L3H7"]["contribution"]["run-1"][5]
    counts = statistics.counts[3].tolist()
    assert all_same(row, binned(statistics.contribution[3, 7, 5].tolist(), counts, edges))


def test_numbers_are_rounded_to_five_digits_and_unknown_ones_are_null():
    values = [0.1, 1 / 3, -2e-7 / 3, 123456.7, 1e300 / 3, -1e-300 / 3, 0.0, -0.0, 5.0, math.nan, math.inf, -math.inf]
    made = numbers(torch.tensor(values, dtype=torch.float64))
    for value, given in zip(values, made, strict=True):
        assert given == (float(f"{value:.5g}") if math.isfinite(value) else None), value
        assert len(json.dumps(given)) <= 12
    assert numbers(2.0) == 2
    assert json.dumps(numbers(torch.tensor([[0.0, 7.0]]))) == "[[0, 7]]"
