"""LongBench's prompts and judgements are the benchmark's own, prompts are cut in the middle, files refused by line."""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import positional_heads as ph
from positional_heads.studies.tasks import longbench as module
from positional_heads.studies.tasks import longbench_metrics
from positional_heads.studies.tasks.longbench import longbench
from positional_heads.zoo.bundled import MODEL_FOLDER

pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
pytest.importorskip("rouge", reason="the extra 'eval' is not installed")
# jieba, and fuzzywuzzy, which the harness's metrics import
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
    # where the harness departs from the benchmark
    ("lcc", {"answers": ["x = 1"]}, "\n   \nx = 1", 0.5),  # the line of three blanks, of which two match
    ("gov_report", {"answers": ["a"]}, " . a", 2 / 3),  # the blank before the point counts as a sentence
    ("samsum", {"answers": ["a b"]}, "\n\na b\nDialogue: c", 1.0),  # the first line
    ("trec", {"answers": ["City"], "all_classes": ["City", "State"]}, "City\nState", 1.0),
    # an oddity of the benchmark: the class behind one that was taken out is not looked at, and stays
    ("trec", {"answers": ["abc"], "all_classes": ["a", "b", "abc"]}, "abc", 0.5),
    ("multifieldqa_zh", {"answers": ["北京,上海"]}, "北京", 2 / 3),  # one word of one, of two
    ("passage_retrieval_zh", {"answers": ["段落3"]}, "3 4", 0.5),
]


@pytest.mark.parametrize("case", range(len(JUDGED)))
def test_answers_are_judged_as_by_hand(case):
    dataset, changes, said, score = JUDGED[case]
    name, settings = module.benchmark_dataset(dataset + "_e")
    made = document(dataset, **changes)
    found = longbench_metrics.judged(name, settings["metric"], said, made["answers"], made["all_classes"])
    assert found == pytest.approx(score, abs=0.01)


def test_most_judgements_are_the_harness_s():
    """All metrics, on answers that need no stripping and hold no blank lines."""
    import lm_eval.tasks.longbench.metrics as theirs

    pairs = [("The cat, a dog 7", "a dog 7 cats"), ("段落7 北京!", "上海北京段落7"), ("x = 17 # no\ny = 2", "y = 21")]
    names = {"words": "qa_f1", "words_zh": "qa_f1_zh", "rouge": "rouge", "rouge_zh": "rouge_zh", "code": "code_sim"}
    for said, answer in pairs:
        for ours, other in {**names, "count": "count"}.items():
            expected = getattr(theirs, f"get_{other}_score")({"answers": [answer]}, [said])[f"{other}_score"]
            assert longbench_metrics.METRICS[ours](said, answer) == expected, (ours, said)


def test_prompts_are_the_benchmark_s_to_the_character():
    found = {name: settings["prompt"] for name, settings in module._datasets().items()}
    said = hashlib.sha256(json.dumps(found, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    # of config/dataset2prompt.json in github.com/THUDM/LongBench, commit 2e00731, written in the same way
    assert said == "e7d865d712fe45e2455f5e864ac474001d7758d68d349e76ffbcdd382483358f"
    most = {name: settings["most_tokens"] for name, settings in module._datasets().items()}
    said = hashlib.sha256(json.dumps(most, sort_keys=True).encode()).hexdigest()
    assert said == "39a79d9491ead3dc8bcea6dbd8b963b29248eb4c344dde1e176b0a58b4e758a9"  # dataset2maxlen.json


def test_the_harness_departs_in_the_ends_of_six_prompts():
    import yaml

    folder = Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0]) / "tasks" / "longbench"
    departing = {}
    for name, settings in module._datasets().items():
        lines = (folder / f"{name}.yaml").read_text(encoding="utf-8").replace("!function", "").splitlines()
        theirs = yaml.safe_load(next(line for line in lines if line.startswith("doc_to_text")))["doc_to_text"]
        ours = settings["prompt"].replace("{context}", "{{context}}").replace("{input}", "{{question}}")
        if ours != theirs:
            assert "".join(ours.split()) == "".join(theirs.split())
            departing[name] = ours
    assert sorted(departing) == ["lcc", "passage_count", "passage_retrieval_en", "repobench-p", "samsum", "triviaqa"]
    assert departing["lcc"].endswith("Next line of code:\n")
    assert departing["samsum"].endswith("{{context}}\n\n{{question}}")


@torch.no_grad()
def test_generated_answers_and_log_probabilities_are_hugging_faces(bundled, tmp_path):
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
    assert module._generated_answer(bundled, bundled.tokenizer, prompt, "passage_count") == expected
    logits = reference(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
    log_prob = float(logits.log_softmax(-1)[range(len(answer)), answer].mean())
    found = task.measure(bundled)
    assert float(found["log_prob"]) == pytest.approx(log_prob, abs=1e-4)
    assert bytes(answer.tolist()).decode() == "48213"  # its prompt ends with a blank
    assert "48213" in bytes(prompt[1:].tolist()).decode()


@torch.no_grad()
def test_a_summary_ends_with_its_line_and_does_not_begin_with_it(bundled, tmp_path):
    """As in LongBench's own `pred.py`: an end of line ends it, and at least one token comes before."""
    (prompt,) = longbench(bundled, file=written(tmp_path, document("samsum"))).prompts
    reference = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, attn_implementation="eager").eval()
    newline = ord("\n")
    # the bundled model hardly ever ends a line: it is made to, in both
    reference.lm_head.bias = torch.nn.Parameter(torch.zeros(reference.config.vocab_size))
    reference.lm_head.bias.data[newline] = bias = 9.0
    said = reference.generate(
        prompt[None],
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=128,
        min_length=len(prompt) + 1,
        do_sample=False,
        eos_token_id=[newline],
        pad_token_id=0,
    )[0, len(prompt) :]
    expected = bytes(said.tolist()).decode()

    def more_ends(logits, hook):
        logits[..., newline] += bias
        return logits

    with bundled.hooks(fwd_hooks=[("unembed.hook_out", more_ends)]):
        found = module._generated_answer(bundled, bundled.tokenizer, prompt, "samsum")
    assert found == expected
    assert found[0] != "\n"
    assert found.endswith("\n")


def test_heads_are_ablated_while_an_answer_is_generated(bundled, tmp_path):
    file = written(tmp_path, document("passage_count"), document("trec", all_classes=["a"], answers=["a"]))
    plain = ph.evaluate(bundled, "longbench", file=file)
    without = ph.evaluate(bundled, "longbench", file=file, heads=[ph.Head(0, 2), ph.Head(1, 3), ph.Head(2, 4)])
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
    return module.benchmark_dataset(made["dataset"])[1]["prompt"].format(context=made["context"], input=made["input"])


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\x0c", "\x1d"])
def test_lines_end_with_a_newline_and_nothing_else(separator, bundled, tmp_path):
    file = tmp_path / "documents.jsonl"
    documents = [document("passage_count", context=f"one{separator}two"), document("passage_count")]
    lines = [json.dumps(one, ensure_ascii=False) for one in documents]
    file.write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8", newline="")
    task = longbench(bundled, file=file)
    assert [one["context"] for one in task.documents] == [one["context"] for one in documents]


BAD = {
    "not json": (["{}", "{"], {}, "line 1: the fields input, context"),
    "broken": ([json.dumps(document("lcc")), "{"], {}, "line 2: not JSON"),
    "missing": (
        [json.dumps(document("lcc")), json.dumps({"input": "", "context": "", "answers": ["a"]})],
        {},
        "line 2: the fields length, dataset, language, all_classes, _id are missing",
    ),
    "no answer": ([json.dumps(document("trec", answers=[]))], {}, "line 1: answers must be a list with at least one"),
    "blank answer": ([json.dumps(document("lcc", answers=[" "]))], {}, "answers must be a list .* each a text, it is"),
    "number": ([json.dumps(document("passage_count", answers=[3]))], {}, "answers must be a list .* each a text"),
    "no context": ([json.dumps(document("lcc", context=None))], {}, "line 1: context must be a text, it is None"),
    "no input": ([json.dumps(document("lcc", input=None))], {}, "line 1: input must be a text, it is None"),
    "number as dataset": ([json.dumps(document(7))], {}, "line 1: dataset must be a text, it is 7"),
    "no classes": ([json.dumps(document("trec"))], {}, "line 1: a document of trec cannot be judged: all_classes must"),
    "paragraph": (
        [json.dumps(document("passage_retrieval_en", answers=["7"]))],
        {},
        "its metric looks for an answer like 'Paragraph 7', it is '7'",
    ),
    "few": ([json.dumps(document("lcc"))], {"examples": -1}, "examples (-1 )?must be"),
    "zero": ([json.dumps(document("lcc"))], {"examples": 0}, "examples (0 )?must be"),
    "true": ([json.dumps(document("lcc"))], {"examples": True}, "examples must be a whole number or None, got True"),
    "dataset": ([json.dumps(document("trek"))], {}, "line 1: LongBench has no dataset 'trek'; it has 2wikimqa"),
    "none": ([json.dumps(document("lcc"))], {"dataset": "trec"}, "no document of LongBench's dataset 'trec'"),
    "length": ([json.dumps(document("lcc"))], {"length": 999}, "length 999 must be between 2 and the model's context"),
    "room": ([json.dumps(document("lcc"))], {"length": 60}, "length 60 leaves no room for a prompt: lcc generates"),
}


@pytest.mark.parametrize("case", BAD)
def test_unfit_files_are_refused(case, bundled, tmp_path):
    lines, settings, message = BAD[case]
    file = tmp_path / "documents.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises((ValueError, TypeError), match=message):
        longbench(bundled, file=file, **settings)


def test_missing_files_and_libraries_are_refused(bundled, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"nowhere.jsonl: no such file"):
        longbench(bundled, file=tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match="longbench needs file="):
        longbench(bundled)
    with pytest.raises(ValueError, match=r"hotpotqa cannot be read from the hub .* give a local copy as file="):
        longbench(bundled, dataset="hotpotqa")
    with monkeypatch.context() as missing:
        missing.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"need rouge, .* not installed: pip install 'positional-heads\[eval\]'"):
            longbench(bundled, file=written(tmp_path, document("gov_report")))
        assert longbench(bundled, file=written(tmp_path, document("lcc"))).documents  # which needs nothing


def test_a_file_of_another_encoding_is_refused(bundled, tmp_path):
    (tmp_path / "latin.jsonl").write_bytes('{"input": "café"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.jsonl: not UTF-8 text \(byte 14\); give a JSON-lines file"):
        ph.evaluate(bundled, "longbench", file=tmp_path / "latin.jsonl")


@pytest.mark.usefixtures("no_retrieval")
def test_the_documents_are_part_of_what_a_study_is(bundled, tmp_path):
    scores = ph.score_heads(bundled, ph.cut_text(bundled, ph.bundled_text(), 64)[:2])
    few = {"counts": [1], "n_random": 1, "singles": "none", "checkpoint": tmp_path / "kept"}
    one = document("lcc", context="x = 1\n")
    study = ph.ablation_study(bundled, scores, "longbench", file=written(tmp_path, one), **few)
    assert len(study.provenance["task"]["sha256"]) == 64
    with pytest.raises(ValueError, match=r"another study .different: task"):
        ph.ablation_study(bundled, scores, "longbench", file=written(tmp_path, one | {"context": "x = 2\n"}), **few)
