"""The harness sees the model with heads ablated, as it would see a model without them; cut prompts are refused."""

import json
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import positional_heads as ph
from positional_heads.harness import evaluate_harness, harness_task
from positional_heads.studies.ablation import ablation_study
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
    return lm_eval.simple_evaluate(
        model=without(heads, tokenizer), tasks=[name], task_manager=manager, bootstrap_iters=0
    )


@pytest.mark.parametrize("heads", [[], HEADS])
def test_log_likelihoods_are_those_of_a_model_without_the_heads(heads, folder, bundled):
    plain = bundled(torch.arange(9)[None])
    found = evaluate_harness(bundled, ["our_choose"], ablate=heads, include_path=folder)
    expected = by_hand(heads, folder, "our_choose", bundled.tokenizer)
    for ours, theirs in zip(found["samples"]["our_choose"], expected["samples"]["our_choose"], strict=True):
        for one, other in zip(ours["filtered_resps"], theirs["filtered_resps"], strict=True):
            assert one[0] == pytest.approx(other[0], abs=1e-3)
    assert found["results"]["our_choose"]["acc,none"] == expected["results"]["our_choose"]["acc,none"]
    assert torch.equal(bundled(torch.arange(9)[None]), plain)


def test_generation_is_that_of_a_model_without_the_heads(folder, bundled):
    for heads in ([], HEADS):
        found = evaluate_harness(bundled, ["our_say"], ablate=heads, include_path=folder)
        expected = by_hand(heads, folder, "our_say", bundled.tokenizer)
        said, theirs = ([sample["filtered_resps"] for sample in run["samples"]["our_say"]] for run in (found, expected))
        assert said == theirs
    assert [text[0] for text in said] != ["48213", "90125"]  # with all heads it says them


def test_a_harness_task_is_a_task_of_ours(folder, bundled):
    task = harness_task(bundled, "our_say", "exact_match", include_path=folder)
    assert ph.evaluate(bundled, task).measures["exact_match"].tolist() == [1, 1]
    assert ph.evaluate(bundled, task, ablate=HEADS).measures["exact_match"].tolist() == [0, 0]
    scores = ph.score_heads(bundled, ph.cut_text(bundled, ph.bundled_text(), 64)[:2])
    study = ablation_study(bundled, scores, task, counts=[1], n_random=1, singles="none")
    assert study.measures == ("exact_match",)
    with pytest.raises(ValueError, match="our_say has no metric 'f1' for each document; it has exact_match"):
        harness_task(bundled, "our_say", "f1", include_path=folder)


def test_prompts_that_would_be_cut_are_refused(folder, bundled):
    with pytest.raises(ValueError, match=r"our_say, document 0: its prompt has \d+ tokens, there is room for 32"):
        evaluate_harness(bundled, ["our_say"], include_path=folder, max_length=40)
    with pytest.raises(ValueError, match=r"our_choose, document 0: its prompt has \d+ tokens, there is room for 30"):
        evaluate_harness(bundled, ["our_choose"], include_path=folder, max_length=30)


def test_it_says_how_to_install_the_harness(bundled, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'positional-heads\[eval\]'"):
        evaluate_harness(bundled, ["anything"])


def test_prompts_are_not_padded_where_frequencies_follow_the_length(folder, bundled):
    refused = pytest.raises(ValueError, match="batch_size 2 pads prompts, and this rotation follows the length")
    with ph.extended_rope(bundled, "dynamic", factor=4), refused:
        evaluate_harness(bundled, ["our_say"], include_path=folder, batch_size=2)
