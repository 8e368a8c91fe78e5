"""LongBench's prompts are cut in the middle, its answers judged as by hand, its files refused by line."""

import json
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import positional_heads as ph
from positional_heads.tasks import longbench as module
from positional_heads.tasks.longbench import longbench
from positional_heads.zoo.bundled import MODEL_FOLDER

pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
pytest.importorskip("rouge", reason="the extra 'eval' is not installed")
# jieba, which the harness's metrics import
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
]


def document(dataset, **changes):
    made = {
        "input": "Who came?",
        "context": " The pass key is 48213. And he saw a beast come up. " * 3,
        "answers": ["Ada Lovelace"],
        "length": 30,
        "dataset": dataset,
        "language": "en",
        "all_classes": None,
        "_id": f"{dataset}-0",
    }
    return made | changes


def written(tmp_path, *documents):
    file = tmp_path / "documents.jsonl"
    file.write_text("\n".join(map(json.dumps, documents)))
    return file


JUDGED = [
    # dataset, changes, what is said, the score by hand
    ("hotpotqa", {}, "the Ada came, lovelace", 2 * (2 / 3) * 1 / (2 / 3 + 1)),  # 2 of 3 words, articles apart
    ("hotpotqa", {"answers": ["x", "Ada"]}, "Ada", 1.0),  # the best of several answers
    ("gov_report", {"answers": ["a b c d"]}, "a c x d", 0.75),  # common subsequence a c d of 4 and 4
    ("trec", {"answers": ["City"], "all_classes": ["City", "State"]}, "City or State", 0.5),
    ("passage_retrieval_en", {"answers": ["Paragraph 7"]}, "Paragraph 7, not 9", 0.5),
    ("passage_count", {"answers": ["3"]}, "3 or 3 or 4", 2 / 3),
    ("lcc", {"answers": ["x = 1"]}, "# first\nx = 2\n", 0.8),  # 2 * 4 matching letters of 5 + 5
]


@pytest.mark.parametrize("case", range(len(JUDGED)))
def test_answers_are_judged_as_by_hand(case):
    dataset, changes, said, score = JUDGED[case]
    assert module._judged(document(dataset, **changes), said) == pytest.approx(score, abs=0.01)


@torch.no_grad()
def test_what_is_said_and_how_likely_the_answer_is_as_by_hugging_face(bundled, tmp_path):
    task = longbench(bundled, file=written(tmp_path, document("passage_count", answers=["48213"])))
    reference = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, attn_implementation="eager").eval()
    (prompt,), (answer,) = task.prompts, task.answers
    said = reference.generate(
        prompt[None],
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=32,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0, len(prompt) :]
    expected = bundled.tokenizer.decode(said.tolist(), skip_special_tokens=True)
    assert module._said(bundled, bundled.tokenizer, prompt, module._dataset("passage_count")) == expected
    logits = reference(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
    log_prob = float(logits.log_softmax(-1)[range(len(answer)), answer].mean())
    found = task.measure(bundled)
    assert float(found["log_prob"]) == pytest.approx(log_prob, abs=1e-4)
    assert bytes(answer.tolist()).decode() == " 48213"
    assert "48213" in bytes(prompt[1:].tolist()).decode()


def test_heads_are_ablated_in_what_is_said(bundled, tmp_path):
    file = written(tmp_path, document("passage_count"), document("trec", all_classes=["a"], answers=["a"]))
    plain = ph.evaluate(bundled, "longbench", file=file)
    without = ph.evaluate(bundled, "longbench", file=file, ablate=[ph.Head(0, 2), ph.Head(1, 3), ph.Head(2, 4)])
    assert not torch.equal(plain.measures["log_prob"], without.measures["log_prob"])
    frame = plain.to_frame()
    assert list(frame["dataset"]) == ["passage_count", "trec"]
    assert list(frame["id"]) == ["passage_count-0", "trec-0"]
    assert len(ph.evaluate(bundled, "longbench", file=file, dataset="trec").rows) == 1


def test_a_long_prompt_loses_its_middle(bundled, tmp_path):
    text = "".join(chr(97 + index % 26) for index in range(900))
    whole = longbench_prompt_text(document("passage_count", context=text))
    task = longbench(bundled, file=written(tmp_path, document("passage_count", context=text)), length=301)
    (prompt,), (dropped,) = task.prompts, task.dropped
    room = 301 - 1 - 32  # a beginning-of-sequence token, and 32 to be generated
    kept = bytes(prompt[1:].tolist()).decode()
    assert kept == whole[: room // 2] + whole[-(room // 2) :]
    assert dropped == len(whole) - len(kept) == task.rows[0]["tokens_dropped"]
    short = longbench(bundled, file=written(tmp_path, document("passage_count", context="short")))
    assert short.dropped == (0,)


def longbench_prompt_text(made):
    template = module._dataset(made["dataset"])["doc_to_text"]
    return template.replace("{{context}}", made["context"]).replace("{{question}}", made["input"])


BAD = {
    "not json": (["{}", "{"], {}, "line 1: the fields input, context"),
    "broken": ([json.dumps(document("trec")), "{"], {}, "line 2: not JSON"),
    "missing": (
        [json.dumps(document("trec")), json.dumps({"input": "", "context": "", "answers": ["a"]})],
        {},
        "line 2: the fields length, dataset, language, all_classes, _id are missing",
    ),
    "no answer": ([json.dumps(document("trec", answers=[]))], {}, "line 1: answers must be a list with at least one"),
    "dataset": ([json.dumps(document("trek"))], {}, "line 1: LongBench has no dataset 'trek'; it has 2wikimqa"),
    "none": ([json.dumps(document("trec"))], {"dataset": "lcc"}, "no document of LongBench's dataset 'lcc'"),
    "length": ([json.dumps(document("trec"))], {"length": 999}, "length 999 must be between 2 and the model's context"),
    "room": ([json.dumps(document("trec"))], {"length": 60}, "length 60 leaves no room for a prompt: trec generates"),
}


@pytest.mark.parametrize("case", BAD)
def test_unfit_files_are_refused(case, bundled, tmp_path):
    lines, settings, message = BAD[case]
    file = tmp_path / "documents.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        longbench(bundled, file=file, **settings)


def test_missing_files_and_libraries_are_refused(bundled, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"nowhere.jsonl: no such file"):
        longbench(bundled, file=tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match="longbench needs file="):
        longbench(bundled)
    with pytest.raises(ValueError, match=r"hotpotqa cannot be read from the hub .* give a local copy as file="):
        longbench(bundled, dataset="hotpotqa")
    module._datasets.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval.tasks.longbench.metrics", None)
    with pytest.raises(ImportError, match=r"pip install 'positional-heads\[eval\]'"):
        longbench(bundled, file=written(tmp_path, document("trec")))
