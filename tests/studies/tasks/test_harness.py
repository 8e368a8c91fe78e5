"""The harness sees the model with heads ablated, as it would see a model without them; cut prompts are refused."""

import json
import random
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch.utils import collect_env
from transformers import AutoModelForCausalLM

import positional_heads as ph
from positional_heads.studies import ablation
from positional_heads.studies.ablation import ablation_study
from positional_heads.studies.tasks.harness import evaluate_harness, harness_task
from positional_heads.studies.tasks.harness_tasks import _described_once, _machine
from positional_heads.zoo.bundled import MODEL_FOLDER

pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
# the harness and the libraries under it, on which we have no influence
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
HEADS = [ph.Head(2, 4), ph.Head(0, 2), ph.Head(2, 0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tasks on local files: choose between two answers, and say a passkey."""
    folder = tmp_path_factory.mktemp("tasks")
    choices = [
        {
            "text": f" The pass key is {key}. And it came to pass. The pass key is {key[:2]}",
            "right": key[2:],
            "wrong": "00",
        }
        for key in ("1234", "9876", "5555", "4821")
    ]
    (folder / "choices.jsonl").write_text("\n".join(map(json.dumps, choices)))
    keys = [
        {"text": f" The pass key is {key}. And he saw a beast. The pass key is", "key": key}
        for key in ("48213", "90125")
    ]
    (folder / "keys.jsonl").write_text("\n".join(map(json.dumps, keys)))
    for name, body in {
        "choose": """
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: ["{{right}}", "{{wrong}}"]
doc_to_target: 0
target_delimiter: ""
metric_list:
  - metric: acc
""",
        "say": """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{key}}"
generation_kwargs:
  until: ["."]
  max_gen_toks: 8
  do_sample: false
filter_list:
  - name: none
    filter:
      - function: remove_whitespace
      - function: take_first
metric_list:
  - metric: exact_match
""",
    }.items():
        file = "choices" if name == "choose" else "keys"
        (folder / f"{name}.yaml").write_text(
            f"task: our_{name}\ndataset_path: json\n"
            f"dataset_kwargs:\n  data_files:\n    test: {folder / (file + '.jsonl')}\n"
            f"test_split: test\n{body}"
        )
    return folder


@pytest.fixture(scope="module")
def written(folder):
    """A task that writes its own documents, as RULER does: a passkey drawn when the task is loaded."""
    (folder / "drawing.py").write_text(
        """import random
import datasets
import numpy as np

def keys(tokenizer=None, sizes=(5,), **others):
    rows = [
        {"text": f" The pass key is {key}. The beast. The pass key is", "key": str(key), "told": str(tokenizer)}
        for key in (random.randrange(10 ** size // 10, 10 ** size) for size in sizes for _ in range(3))
    ]
    rows[0]["noise"] = float(np.random.random())
    return {"test": datasets.Dataset.from_list(rows)}
"""
    )
    (folder / "drawn.yaml").write_text(
        (folder / "say.yaml").read_text().replace("our_say", "our_drawn").split("dataset_path")[0]
        + 'dataset_path: ""\ndataset_name: ""\ncustom_dataset: !function drawing.keys\ntest_split: test\noutput_type'
        + (folder / "say.yaml").read_text().split("output_type")[1]
    )
    (folder / "again.yaml").write_text((folder / "choose.yaml").read_text().replace("our_choose", "our_choose_again"))
    (folder / "group.yaml").write_text(
        "group: our_group\ntask:\n  - our_choose\n  - our_choose_again\n"
        "aggregate_metric_list:\n  - metric: acc\n    weight_by_size: true\n"
    )
    return folder


def asked(found, name="our_drawn"):
    return [sample["doc"] for sample in sorted(found["samples"][name], key=lambda sample: sample["doc_id"])]


def test_written_documents_follow_the_seed_and_nothing_else(written, bundled):
    random.seed(1)
    plain = evaluate_harness(bundled, "our_drawn", include_path=written, seed=3)
    random.seed(2)
    without_heads = evaluate_harness(bundled, "our_drawn", include_path=written, seed=3, heads=HEADS)
    assert asked(plain) == asked(without_heads)
    assert plain["documents"] == without_heads["documents"]
    other = evaluate_harness(bundled, "our_drawn", include_path=written, seed=4)
    assert asked(other) != asked(plain)
    assert other["documents"] != plain["documents"]
    assert asked(plain)[0]["told"] == str(MODEL_FOLDER)


def test_a_study_has_the_same_documents_throughout_and_is_resumed_with_no_others(
    written, bundled, tmp_path, monkeypatch
):
    monkeypatch.setattr(ablation, "RetrievalTrials", lambda *_: SimpleNamespace(trials=[], notes=[]))
    scores = ph.score_heads(bundled, ph.cut_text(bundled, ph.bundled_text(), 64)[:2])
    few = {"counts": [1], "n_random": 1, "singles": "none", "checkpoint": tmp_path}
    task = harness_task(bundled, "our_drawn", "exact_match", include_path=written, metadata={"sizes": [4]})
    requests = []
    for heads in ((), HEADS):
        with ph.ablated_heads(bundled, heads):
            requests.append([sample["arguments"] for sample in task.loaded.run(bundled, 1)["samples"]["our_drawn"]])
    assert requests[0] == requests[1]
    study = ablation_study(bundled, scores, task, **few)
    assert study.provenance["task"]["sha256"] == task.loaded.hashes["our_drawn"]
    assert study.provenance["task"]["metadata"] == {"sizes": [4]}
    other = harness_task(bundled, "our_drawn", "exact_match", include_path=written, metadata={"sizes": [4]}, seed=1)
    with pytest.raises(ValueError, match=r"another study .different: task"):
        ablation_study(bundled, scores, other, **few)


def test_groups_keep_their_aggregate(written, bundled):
    found = evaluate_harness(bundled, ["our_group", "our_say"], include_path=written)
    assert set(found["samples"]) == {"our_choose", "our_choose_again", "our_say"}
    parts = [found["results"][name]["acc,none"] for name in ("our_choose", "our_choose_again")]
    assert found["groups"]["our_group"]["acc,none"] == pytest.approx(sum(parts) / 2)
    with pytest.raises(ValueError, match="our_group is a group of tasks: choose one of our_choose, our_choose_again"):
        harness_task(bundled, "our_group", "acc", include_path=written)


def test_one_task_may_stand_alone_by_name_or_as_a_configuration(written, folder, bundled):
    body = yaml.safe_load((folder / "choose.yaml").read_text())
    by_name = evaluate_harness(bundled, "our_choose", include_path=written)
    by_configuration = evaluate_harness(bundled, body)
    assert by_name["results"]["our_choose"]["acc,none"] == by_configuration["results"]["our_choose"]["acc,none"]
    assert by_name["documents"] == by_configuration["documents"]
    with pytest.raises(TypeError, match="must be at least one name of a task"):
        evaluate_harness(bundled, [])
    for wrong in ([3], [None], 7):  # refused by the types, too, where these are checked
        with pytest.raises(TypeError):
            evaluate_harness(bundled, wrong)


@pytest.mark.parametrize("task", ["our_choose", "our_say"])
def test_resample_takes_the_reference_of_each_documents_number(folder, bundled, task):
    reference = torch.stack(ph.cut_text(bundled, ph.bundled_text(), 128)[:4])
    settings = {"heads": HEADS, "mode": "resample", "include_path": folder}

    def answers(found):
        samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
        return [sample["resps"] for sample in samples]

    together = answers(evaluate_harness(bundled, task, reference=reference, **settings))
    alone = [answers(evaluate_harness(bundled, task, reference=row[None], **settings)) for row in reference]
    assert together == [alone[number][number] for number in range(len(together))]
    assert together != alone[0]


def test_resample_is_refused_where_it_would_depend_on_the_batch(folder, bundled):
    with pytest.raises(ValueError, match="batch_size must be 1, not 4"):
        evaluate_harness(bundled, "our_say", heads=HEADS, mode="resample", reference=["a b c"], batch_size=4)


def without(heads, tokenizer):
    """Hugging Face's model with the heads' share of the output projection zeroed, as the harness would be given it."""
    from lm_eval.models.huggingface import HFLM

    model = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, attn_implementation="eager").eval()
    for layer, head in heads:
        model.model.layers[layer].self_attn.o_proj.weight.data[:, head * 32 : (head + 1) * 32] = 0
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=512)


def by_hand(heads, folder, name, tokenizer):
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    with _described_once():
        return lm_eval.simple_evaluate(
            model=without(heads, tokenizer), tasks=[name], task_manager=manager, bootstrap_iters=0
        )


@pytest.mark.parametrize("heads", [[], HEADS])
def test_log_likelihoods_are_those_of_a_model_without_the_heads(heads, folder, bundled):
    plain = bundled(torch.arange(9)[None])
    found = evaluate_harness(bundled, ["our_choose"], heads=heads, include_path=folder)
    expected = by_hand(heads, folder, "our_choose", bundled.tokenizer)
    for ours, theirs in zip(found["samples"]["our_choose"], expected["samples"]["our_choose"], strict=True):
        for one, other in zip(ours["filtered_resps"], theirs["filtered_resps"], strict=True):
            assert one[0] == pytest.approx(other[0], abs=1e-3)
    assert found["results"]["our_choose"]["acc,none"] == expected["results"]["our_choose"]["acc,none"]
    assert torch.equal(bundled(torch.arange(9)[None]), plain)


def test_generation_is_that_of_a_model_without_the_heads(folder, bundled):
    for heads in ([], HEADS):
        found = evaluate_harness(bundled, ["our_say"], heads=heads, include_path=folder)
        expected = by_hand(heads, folder, "our_say", bundled.tokenizer)
        said, theirs = ([sample["filtered_resps"] for sample in run["samples"]["our_say"]] for run in (found, expected))
        assert said == theirs
    assert [text[0] for text in said] != ["48213", "90125"]  # with all heads it says them


@pytest.mark.usefixtures("no_retrieval")
def test_a_harness_task_is_a_task_of_ours(folder, bundled):
    task = harness_task(bundled, "our_say", "exact_match", include_path=folder)
    assert ph.evaluate(bundled, task).measures["exact_match"].tolist() == [1, 1]
    assert ph.evaluate(bundled, task, heads=HEADS).measures["exact_match"].tolist() == [0, 0]
    scores = ph.score_heads(bundled, ph.cut_text(bundled, ph.bundled_text(), 64)[:2])
    study = ablation_study(bundled, scores, task, counts=[1], n_random=1, singles="none")
    assert study.measures == ("exact_match",)
    with pytest.raises(ValueError, match="our_say has no metric 'f1' for each document; it has exact_match"):
        harness_task(bundled, "our_say", "f1", include_path=folder)


def test_programs_that_describe_the_machine_are_started_for_the_first_run_alone(folder, bundled, monkeypatch):
    """By the harness, through PyTorch: pip and a dozen others, which take seconds for every set of a study."""
    started, describe = [], collect_env.get_pretty_env_info
    monkeypatch.setattr(collect_env, "run", lambda command: started.append(command) or (1, "", ""))
    _machine.cache_clear()
    counts, said = [], []
    for _ in range(2):
        said.append(evaluate_harness(bundled, "our_choose", include_path=folder)["pretty_env_info"])
        counts.append(len(started))
    _machine.cache_clear()  # no program answered
    assert counts[0] == counts[1] > 0
    assert said[0] == said[1]
    assert f"PyTorch version: {torch.__version__}" in said[0]
    assert collect_env.get_pretty_env_info is describe


def test_prompts_that_would_be_cut_are_refused(folder, bundled):
    with pytest.raises(ValueError, match=r"our_say, document 0: its prompt has \d+ tokens, there is room for 32"):
        evaluate_harness(bundled, ["our_say"], include_path=folder, max_length=40)
    with pytest.raises(ValueError, match=r"our_choose, document 0: its prompt has \d+ tokens, there is room for 30"):
        evaluate_harness(bundled, ["our_choose"], include_path=folder, max_length=30)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"batch_size": 0}, ValueError, "batch_size 0 must be at least 1"),
        ({"batch_size": 1.5}, ValueError, "batch_size must be a whole number"),
        ({"mode": "foo"}, ValueError, "'zero' or 'mean' .*got 'foo'"),
        ({"mode": "far", "distance": -4}, ValueError, "distance -4 must be at least 1"),
    ],
)
def test_what_only_a_whole_run_takes_is_refused_with_or_without_heads(given, error, said, bundled, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # it is said before the harness is needed
    with pytest.raises(error, match=said):
        evaluate_harness(bundled, "our_say", **given)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"limit": 0}, ValueError, "limit 0 must be at least 1"),
        ({"limit": -1}, ValueError, "limit -1 must be at least 1"),
        ({"limit": 0.5}, ValueError, "limit must be a whole number or None"),
        ({"max_length": 0}, ValueError, "max_length 0 must be at least 1"),
        ({"max_length": "x"}, TypeError, "max_length must be a whole number or None"),
        ({"seed": -1}, ValueError, "seed -1 must be at least 0"),
        ({"seed": 2**40}, ValueError, "seed 1099511627776 must be at most 4294967295"),
        ({"seed": 1.5}, ValueError, "seed must be a whole number"),
        ({"metadata": 5}, TypeError, "metadata must be a dict or None"),
        ({"include_path": "nowhere"}, FileNotFoundError, "include_path nowhere: no such folder"),
        ({"tasks": None}, TypeError, "must be a text or a dict"),
        ({"tasks": 5}, TypeError, "must be a text or a dict"),
        ({"tasks": {}}, TypeError, "the configuration {} has no name"),
        ({"tasks": {"dataset_path": "json"}}, TypeError, "'dataset_path': 'json'. has no name: give it one"),
    ],
)
def test_values_that_make_no_sense_are_refused_before_the_harness_is_needed(given, error, said, bundled, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    settings = {name: value for name, value in given.items() if name != "tasks"}
    tasks = given.get("tasks", "our_say")
    with pytest.raises(error, match=said):
        evaluate_harness(bundled, tasks, **settings)
    with pytest.raises(error, match=said):
        harness_task(bundled, tasks, "exact_match", **settings)


def test_a_configuration_is_a_task_of_ours_under_its_name(folder, bundled):
    task = harness_task(bundled, yaml.safe_load((folder / "choose.yaml").read_text()), "acc")
    assert task.name == "our_choose"
    assert len(ph.evaluate(bundled, task).measures["acc"]) == 4


def test_a_missing_harness_is_refused_with_the_command_that_installs_it(bundled, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'positional-heads\[eval\]'"):
        evaluate_harness(bundled, ["anything"])


def test_prompts_are_not_padded_where_frequencies_follow_the_length(folder, bundled):
    refused = pytest.raises(ValueError, match="batch_size 2 pads prompts, and this rotation follows the length")
    with ph.extended_rope(bundled, "dynamic", factor=4), refused:
        evaluate_harness(bundled, ["our_say"], include_path=folder, batch_size=2)
