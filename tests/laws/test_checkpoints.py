"""Whatever resumes from a folder knows what is done to the model, and refuses what nobody can know."""

import inspect

import pytest
import torch

import positional_heads as ph

TOKENS = torch.randint(97, 122, (4, 40), generator=torch.Generator().manual_seed(3))
TEXT = ph.bundled_text()[:2000]
TASK = {"length": 64, "depths": 1, "examples": 1}
EXTENDED = {"training_length": 64, "depths": 1, "examples": 1, "heads": "L0H1"}

CALLS = {
    "score_heads": lambda model, *_, folder: ph.score_heads(model, TOKENS, checkpoint=folder),
    "score_shard": lambda model, *_, folder: ph.score_shard(model, TOKENS, "1/1", folder),
    "profile_heads": lambda model, *_, folder: ph.profile_heads(model, TOKENS, retrieval=None, checkpoint=folder),
    "distance_response": lambda model, *_, folder: ph.distance_response(model, TOKENS, n_random=1, checkpoint=folder),
    "ablation_study": lambda model, profile, folder: ph.ablation_study(
        model, profile.scores, counts=[1], n_random=1, singles="none", checkpoint=folder, **TASK
    ),
    "plan_study": lambda model, profile, folder: ph.plan_study(
        model, profile, budgets=[0.5], window=8, by=["reach"], n_random=1, checkpoint=folder, **TASK
    ),
    "pair_study": lambda model, profile, folder: ph.pair_study(
        model, profile, budgets=[0.5], by=["high"], n_random=1, checkpoint=folder, **TASK
    ),
    "manipulation_study": lambda model, profile, folder: ph.manipulation_study(
        model, profile.scores, counts=[1], top=1, n_random=1, checkpoint=folder, **TASK
    ),
    "extrapolation_study": lambda model, *_, folder: ph.extrapolation_study(
        model, TEXT, ["linear"], [2], checkpoint=folder, **EXTENDED
    ),
    "base_sweep": lambda model, *_, folder: ph.base_sweep(model, TEXT, [500.0], checkpoint=folder, **EXTENDED),
    "recommend_extension": lambda model, *_, folder: ph.recommend_extension(
        model, TEXT, 80, methods=["linear"], factors=[2.0], training_length=64, task=None, checkpoint=folder
    ),
    "emergence_study": lambda model, *_, folder: ph.emergence_study(
        {0: lambda: model, 1: lambda: model}, TOKENS, null_repeats=0, retrieval=None, checkpoint=folder
    ),
}
"""Every public function that resumes from a folder, as a small run of it."""
OF_ONE_MODEL = sorted(CALLS.keys() - {"emergence_study"})
"""Those that know their model when they begin: a study of checkpoints measures one that changed again."""


@pytest.fixture(scope="module")
def profile(tiny):
    return ph.profile_heads(tiny("llama"), TOKENS, retrieval=None)


def idle(tensor, hook):
    return tensor


def test_every_function_that_resumes_is_known():
    resume = {
        name
        for name in ph.__all__
        if inspect.isroutine(getattr(ph, name))
        and {"checkpoint_seconds", "checkpoint"} & {*inspect.signature(getattr(ph, name)).parameters}
    }
    assert resume - {"load_clex"} | {"base_sweep"} == CALLS.keys()


@pytest.mark.usefixtures("no_retrieval")
@pytest.mark.parametrize("name", [one for one in OF_ONE_MODEL if one != "base_sweep"])  # that is an extrapolation study
def test_a_run_under_an_ablation_is_another_run(name, profile, tiny, tmp_path):
    model, call = tiny("llama"), CALLS[name]

    def measured():
        """A profile of the model as it is now, without which no plan is tried on it."""
        return ph.profile_heads(model, TOKENS, retrieval=None) if name in {"plan_study", "pair_study"} else profile

    with ph.ablated_heads(model, "L0H2"):
        made = call(model, measured(), folder=tmp_path)
    with pytest.raises(ValueError, match=r"holds .* of another (run|study) \(different: model"):
        call(model, profile, folder=tmp_path)
    with (
        ph.ablated_heads(model, "L0H2", "mean", reference=TOKENS),
        pytest.raises(ValueError, match="of another"),
    ):
        call(model, measured(), folder=tmp_path)
    result = made if name != "score_shard" else ph.merge_shards(tmp_path)
    assert result.provenance["model"]["edits"] == {"ablated": [{"mode": "zero", "heads": ["L0H2"]}]}


@pytest.mark.parametrize("name", ["score_heads", "ablation_study"])
def test_a_run_with_moved_pairs_is_another_run(name, profile, tiny, tmp_path):
    model, call = tiny("llama"), CALLS[name]
    with ph.manipulated_pairs(model, "L0H2", [0], shared="split"):
        made = call(model, profile, folder=tmp_path)
    for pairs in ([], [1]):
        with ph.manipulated_pairs(model, "L0H2", pairs, shared="split"), pytest.raises(ValueError, match="of another"):
            call(model, profile, folder=tmp_path)
    assert made.provenance["extension"]["moves"] == [{"how": "freeze", "heads": ["L0H2"], "pairs": [0]}]


@pytest.mark.parametrize("name", OF_ONE_MODEL)
def test_hooks_of_others_are_refused_before_anything_is_run_or_written(name, profile, tiny, tmp_path, monkeypatch):
    model = tiny("llama")
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", idle)]):
        monkeypatch.setattr("positional_heads.bridge.capture.recording_hooks", None)
        monkeypatch.setattr("positional_heads.studies.tasks.task.answer_run", None)
        with pytest.raises(ValueError, match=r"hooks act on blocks\.1\.attn\.hook_z, and a checkpoint cannot know"):
            CALLS[name](model, profile, folder=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_without_a_checkpoint_hooks_of_others_are_named_in_the_provenance(tiny):
    model = tiny("llama")
    plain = ph.score_heads(model, TOKENS)
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", idle)]):
        hooked = ph.score_heads(model, TOKENS)
    assert "edits" not in plain.provenance["model"]
    assert hooked.provenance["model"]["edits"] == {"hooks": ["blocks.1.attn.hook_z"]}
    found = {str(one) for one in ph.compare(plain, hooked).differing}
    assert "ablations and hooks (none against hooks on blocks.1.attn.hook_z)" in found
