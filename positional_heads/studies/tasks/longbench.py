"""LongBench (arXiv 2308.14508) from files in its own schema: its prompts, metrics and middle truncation.

Prompts, answer lengths and metrics are exactly those of the benchmark (`longbench.json`, with its licence). The
lm-evaluation-harness differs: six of its prompts end in other whitespace, its code similarity skips blank lines, and it
strips answers before most metrics. A prompt that is too long loses its middle, and each row says how many tokens were
dropped. Differences from the benchmark: the two halves are joined as tokens, the room for a prompt is the model's
context minus the answer, and there is no chat template.
"""

import hashlib
import json
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from positional_heads.bridge.answer_run import answer_run
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.positions import numbered_rows
from positional_heads.bridge.tokenizing import start_token, text_tokens
from positional_heads.core.arguments import checked, in_range
from positional_heads.studies.tasks.longbench_metrics import judged, refuse_missing_library, unfit_answer

SCHEMA = ("input", "context", "answers", "length", "dataset", "language", "all_classes", "_id")
HUB = "Xnhyacinth/LongBench"
"""A copy of the documents without a loading script; the benchmark's own `THUDM/LongBench` needs one."""


@dataclass(frozen=True)
class LongBenchTask:
    """Questions about long texts, answered by greedy decoding and scored by each dataset's own metric.

    Attributes:
        documents: The documents, in LongBench's schema.
        prompts: Token ids of each prompt.
        dropped: Tokens dropped from the middle of each prompt.
        answers: Token ids of the first answer of each document.
        tokenizer: The model's tokenizer.
        settings: Everything needed to reproduce it.
    """

    documents: tuple[Mapping[str, Any], ...]
    prompts: tuple[Int[Tensor, " _"], ...]
    dropped: tuple[int, ...]
    answers: tuple[Int[Tensor, " _"], ...]
    tokenizer: Any
    settings: dict[str, Any]
    name: str = "longbench"
    measures: tuple[str, ...] = ("log_prob", "score")
    chance: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        longest = max((len(prompt) for prompt in self.prompts), default=0)
        settings = reprlib.repr(self.settings)  # shortened
        return f"LongBenchTask({len(self.documents)} documents, prompts of up to {longest} tokens, {settings})"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One entry per document, each a unit of its own."""
        return [
            {
                "example": index,
                "unit": index,
                "reach": "long",
                "length": len(prompt),
                "dataset": str(document["dataset"]),
                "id": str(document["_id"]),
                "tokens_dropped": dropped,
            }
            for index, (document, prompt, dropped) in enumerate(
                zip(self.documents, self.prompts, self.dropped, strict=True)
            )
        ]

    def measure(self, model: TransformerLensModel, batch_size: int | None = None) -> dict[str, Float64[Tensor, " row"]]:  # noqa: ARG002
        """Mean log-probability of the first answer's tokens, and the metric of the generated answer, for each document.

        Args:
            model: A TransformerBridge, with or without ablated heads.
            batch_size: Not used: documents are run one by one.
        """
        log_probs, scores = [], []
        for number, (document, prompt, answer) in enumerate(
            zip(self.documents, self.prompts, self.answers, strict=True)
        ):
            name, settings = benchmark_dataset(document["dataset"])
            with numbered_rows(model, [number]):
                log_probs.append(_log_prob(model, prompt, answer))
                generated = _generated_answer(model, self.tokenizer, prompt, name)
            scores.append(judged(name, settings["metric"], generated, document["answers"], document["all_classes"]))
        return {
            "log_prob": torch.tensor(log_probs, dtype=torch.float64),
            "score": torch.tensor(scores, dtype=torch.float64),
        }


@checked
def longbench(
    model: TransformerLensModel,
    *,
    file: str | Path | None = None,
    dataset: str | None = None,
    length: int | None = None,
    examples: int | None = None,
) -> LongBenchTask:
    """LongBench's questions, from a file or from the hub.

    Args:
        model: A TransformerBridge, for its tokenizer and context.
        file: JSON-lines file with LongBench's fields input, context, answers, length, dataset, language, all_classes
            and _id.
        dataset: Name of one of its datasets, e.g. hotpotqa: the one to read from the hub, or to keep of a file.
        length: Most tokens of prompt and answer together; the model's context when None.
        examples: Number of documents, from the first on; all when None.

    Raises:
        ImportError: If a library that the datasets' metrics need is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If a line is not a document of the schema, its dataset is unknown, its dataset's metric cannot
            score it, or the length leaves no room for a prompt.
    """
    in_range("examples", examples, 1)
    if file is None and dataset is None:
        msg = "longbench needs file=, a JSON-lines file in its schema, or dataset=, the name of a dataset on the hub"
        raise ValueError(msg)
    limit = int(model.cfg.n_ctx)
    length = limit if length is None else length
    if not 2 <= length <= limit:  # noqa: PLR2004
        msg = f"length {length} must be between 2 and the model's context of {limit} tokens"
        raise ValueError(msg)
    documents = _from_hub(str(dataset)) if file is None else _from_file(Path(file), dataset)
    documents = documents[:examples]
    if not documents:
        msg = f"no document of LongBench's dataset {dataset!r} in {file}" if dataset else f"{file}: no document in it"
        raise ValueError(msg)
    refuse_missing_library({benchmark_dataset(document["dataset"])[1]["metric"] for document in documents})
    prepared = [_prompt(model, document, length) for document in documents]
    digest = hashlib.sha256(json.dumps(documents, sort_keys=True, default=str).encode()).hexdigest()
    names = sorted({str(document["dataset"]) for document in documents})
    settings = {"datasets": names, "documents": len(documents), "length": length, "sha256": digest}
    prompts, dropped, answers = zip(*prepared, strict=True)
    return LongBenchTask(tuple(documents), prompts, dropped, answers, model.tokenizer, settings)


def _from_file(file: Path, dataset: str | None) -> list[dict[str, Any]]:
    if not file.is_file():
        msg = f"{file}: no such file; give a JSON-lines file in LongBench's schema"
        raise FileNotFoundError(msg)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"{file}: not UTF-8 text (byte {error.start}); give a JSON-lines file in LongBench's schema"
        raise ValueError(msg) from error
    documents = []
    # split at newlines only: JSON strings may contain other line separators, such as U+2028
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
        except ValueError as error:
            msg = f"{file}, line {number}: not JSON ({error})"
            raise ValueError(msg) from error
        _refuse_unfit(document, f"{file}, line {number}")
        if dataset is None or document["dataset"].removesuffix("_e") == dataset.removesuffix("_e"):
            documents.append(document)
    return documents


def _from_hub(dataset: str) -> list[dict[str, Any]]:
    benchmark_dataset(dataset)
    try:
        from datasets import load_dataset

        rows: Iterable[Any] = load_dataset(HUB, dataset, split="test")
        documents = [{**row, "input": row.get("input", row.get("question"))} for row in rows]
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        msg = f"LongBench's {dataset} cannot be read from the hub ({reason}): give a local copy as file="
        raise ValueError(msg) from error
    for number, document in enumerate(documents, start=1):
        document.setdefault("dataset", dataset)
        _refuse_unfit(document, f"{dataset} on the hub, document {number}")
    return documents


def _refuse_unfit(document: Any, where: str) -> None:
    if not isinstance(document, dict):
        msg = f"{where}: not a document but a {type(document).__name__}"
        raise TypeError(msg) from None
    missing = [name for name in SCHEMA if name not in document]
    if missing:
        msg = f"{where}: the fields {', '.join(missing)} are missing; LongBench's schema is {', '.join(SCHEMA)}"
        raise ValueError(msg)
    for name in ("input", "context", "dataset"):
        if not isinstance(document[name], str):
            msg = f"{where}: {name} must be a text, it is {document[name]!r}"
            raise ValueError(msg)
    answers = document["answers"]
    if not isinstance(answers, list) or not answers or not all(isinstance(one, str) and one.strip() for one in answers):
        msg = f"{where}: answers must be a list with at least one answer, each a text, it is {answers!r}"
        raise ValueError(msg)
    dataset, settings = benchmark_dataset(document["dataset"], where)
    if reason := unfit_answer(settings["metric"], answers, document["all_classes"]):
        msg = f"{where}: a document of {dataset} cannot be judged: {reason}"
        raise ValueError(msg)


def _prompt(
    model: TransformerLensModel, document: Mapping[str, Any], length: int
) -> tuple[Int[Tensor, " pos"], int, Int[Tensor, " answer_pos"]]:
    """The prompt, cut to leave room for the answer; the number of dropped tokens; the first answer."""
    settings = benchmark_dataset(document["dataset"])[1]
    most = int(settings["most_tokens"])
    text = settings["prompt"].format(context=document["context"], input=document["input"])
    start, tokens = start_token(model), text_tokens(model, text, 0)
    answer = text_tokens(model, _separator(text) + document["answers"][0], 0)
    room = length - len(start) - max(len(answer), most)
    if room < 2:  # noqa: PLR2004
        msg = (
            f"length {length} leaves no room for a prompt: {document['dataset']} generates up to {most} tokens, and "
            f"the answer of {document['_id']} has {len(answer)}"
        )
        raise ValueError(msg)
    dropped = max(0, len(tokens) - room)
    if dropped:
        half = room // 2
        tokens = torch.cat([tokens[:half], tokens[len(tokens) - half :]])
        dropped += room - 2 * half
    return torch.cat([start, tokens]), dropped, answer


def _separator(prompt: str) -> str:
    """Between prompt and answer, for log-probabilities, which LongBench does not measure."""
    return "" if prompt[-1].isspace() or prompt.endswith("：") else " "  # noqa: RUF001


@torch.no_grad()
def _log_prob(model: TransformerLensModel, prompt: Int[Tensor, " pos"], answer: Int[Tensor, " answer_pos"]) -> float:
    tokens = torch.cat([prompt, answer])[None].to(model.cfg.device)
    with answer_run(model) as logits_at:
        logits = logits_at(tokens, range(len(prompt) - 1, tokens.shape[1] - 1))[0]
    return -float(torch.nn.functional.cross_entropy(logits.float(), tokens[0, len(prompt) :]))


@torch.no_grad()
def _generated_answer(model: TransformerLensModel, tokenizer: Any, prompt: Int[Tensor, " pos"], dataset: str) -> str:
    """The answer by greedy decoding, ended as the benchmark ends it."""
    most, ends = int(benchmark_dataset(dataset)[1]["most_tokens"]), [getattr(tokenizer, "eos_token_id", None)]
    if dataset == "samsum":  # the benchmark ends it at the end of the line
        ends.append(tokenizer.encode("\n", add_special_tokens=False)[-1])
    ends = [end for end in ends if end is not None and end < int(model.cfg.d_vocab)]
    tokens = prompt[None].to(model.cfg.device)
    if dataset == "samsum":  # and does not let it begin with the end of a line
        with answer_run(model) as logits_at:
            logits = logits_at(tokens, [len(prompt) - 1])[0, 0]
        logits[ends] = -torch.inf
        tokens, most = torch.cat([tokens, logits.argmax()[None, None]], dim=1), most - 1
    output = model.generate(
        tokens,
        max_new_tokens=most,
        do_sample=False,
        stop_at_eos=bool(ends),
        eos_token_id=ends or None,
        return_type="tokens",
        verbose=False,
    )
    return str(tokenizer.decode(output[0, len(prompt) :].tolist(), skip_special_tokens=True))


def benchmark_dataset(name: str, where: str | None = None) -> tuple[str, dict[str, Any]]:
    """Name of a dataset without `_e`, and its prompt, metric and most tokens of an answer.

    Raises:
        ValueError: If LongBench has no such dataset.
    """
    plain, datasets = name.removesuffix("_e"), _datasets()
    if plain not in datasets:
        msg = f"{where + ': ' if where else ''}LongBench has no dataset {name!r}; it has {', '.join(sorted(datasets))}"
        raise ValueError(msg)
    return plain, datasets[plain]


@cache
def _datasets() -> dict[str, dict[str, Any]]:
    file = Path(__file__).with_suffix(".json")
    return dict(json.loads(file.read_text(encoding="utf-8"))["datasets"])
