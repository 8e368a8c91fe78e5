"""LongBench (arXiv 2308.14508) from files in its own schema: its prompts, metrics and middle truncation.

Prompts, answer lengths, stop strings and metrics are those that the lm-evaluation-harness ships (extra `eval`). A
prompt that is too long loses its middle, as LongBench has it: half of the room for its beginning, half for its end; how
much was dropped stands in each row.
"""

import hashlib
import importlib
import json
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from positional_heads.arguments import checked
from positional_heads.host.places import numbered_rows
from positional_heads.host.prefill import prefilled_logits
from positional_heads.host.texts import start_token, text_tokens

SCHEMA = ("input", "context", "answers", "length", "dataset", "language", "all_classes", "_id")
INSTALL = "pip install 'positional-heads[eval]'"


@dataclass(frozen=True)
class LongBenchTask:
    """Questions on long texts, answered by greedy decoding and judged by each dataset's own metric.

    Attributes:
        documents: What is asked, in LongBench's schema.
        prompts: Token ids of each prompt.
        dropped: Tokens that each prompt lost from its middle.
        settings: Everything needed to make it again.
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
        settings = reprlib.repr(self.settings)  # cuts what is long
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

    def measure(self, model: Any, batch_size: int | None = None) -> dict[str, Float64[Tensor, " row"]]:  # noqa: ARG002
        """Mean log-probability of the first answer's tokens, and the metric of what the model says, for each document.

        Args:
            model: A TransformerBridge, as it is inside the block that ablates.
            batch_size: Not used: documents go one by one.
        """
        log_probs, scores = [], []
        for number, (document, prompt, answer) in enumerate(
            zip(self.documents, self.prompts, self.answers, strict=True)
        ):
            with numbered_rows(model, [number]):
                log_probs.append(_log_prob(model, prompt, answer))
                said = _said(model, self.tokenizer, prompt, _dataset(str(document["dataset"])))
            scores.append(_judged(document, said))
        return {
            "log_prob": torch.tensor(log_probs, dtype=torch.float64),
            "score": torch.tensor(scores, dtype=torch.float64),
        }


@checked
def longbench(
    model: Any,
    *,
    file: str | Path | None = None,
    dataset: str | None = None,
    length: int | None = None,
    examples: int | None = None,
    seed: int = 0,
) -> LongBenchTask:
    """LongBench's questions, from a file or from the hub.

    Args:
        model: A TransformerBridge, for its tokenizer and context.
        file: JSON-lines file with LongBench's fields input, context, answers, length, dataset, language, all_classes
            and _id.
        dataset: Name of one of its datasets, e.g. hotpotqa: read from the hub, or, with a file, the only one kept.
        length: Most tokens of prompt and answer together; the model's context when None.
        examples: How many documents, the first ones; all when None.
        seed: Taken for symmetry with other tasks; nothing is drawn.

    Raises:
        ImportError: If the harness, whose prompts and metrics these are, is not installed.
        FileNotFoundError: If there is no such file.
        ValueError: If a line is not a document of the schema, its dataset is unknown, or the length has no room.
    """
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
    made = [_prompt(model, document, length) for document in documents]
    digest = hashlib.sha256(json.dumps(documents, sort_keys=True, default=str).encode()).hexdigest()
    names = sorted({str(document["dataset"]) for document in documents})
    settings = {"datasets": names, "documents": len(documents), "length": length, "sha256": digest, "seed": seed}
    prompts, dropped, answers = zip(*made, strict=True)
    return LongBenchTask(tuple(documents), prompts, dropped, answers, model.tokenizer, settings)


def _from_file(file: Path, dataset: str | None) -> list[dict[str, Any]]:
    if not file.is_file():
        msg = f"{file}: no such file; give a JSON-lines file in LongBench's schema"
        raise FileNotFoundError(msg)
    documents = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
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
    settings = _dataset(dataset)
    try:
        from datasets import load_dataset

        rows: Iterable[Any] = load_dataset(settings["dataset_path"], settings["dataset_name"], split="test")
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
    if not isinstance(document["answers"], list) or not document["answers"]:
        msg = f"{where}: answers must be a list with at least one answer, it is {document['answers']!r}"
        raise ValueError(msg)
    _dataset(str(document["dataset"]), where)


def _prompt(
    model: Any, document: Mapping[str, Any], length: int
) -> tuple[Int[Tensor, " pos"], int, Int[Tensor, " answer_pos"]]:
    """Prompt, what it lost from its middle, and the first answer, with room for it and for what is generated."""
    import jinja2

    settings = _dataset(str(document["dataset"]))
    template = jinja2.Environment(keep_trailing_newline=True, autoescape=False).from_string(settings["doc_to_text"])
    text = template.render(context=document["context"], question=document["input"], input=document["input"])
    start, tokens = start_token(model), text_tokens(model, text, 0)
    answer = text_tokens(model, str(settings.get("target_delimiter", " ")) + str(document["answers"][0]), 0)
    room = length - len(start) - max(len(answer), _most_said(settings))
    if room < 2:  # noqa: PLR2004
        msg = (
            f"length {length} leaves no room for a prompt: {document['dataset']} generates up to "
            f"{_most_said(settings)} tokens, and the answer of {document['_id']} has {len(answer)}"
        )
        raise ValueError(msg)
    dropped = max(0, len(tokens) - room)
    if dropped:
        half = room // 2
        tokens = torch.cat([tokens[:half], tokens[len(tokens) - half :]])
        dropped += room - 2 * half
    return torch.cat([start, tokens]), dropped, answer


@torch.no_grad()
def _log_prob(model: Any, prompt: Int[Tensor, " pos"], answer: Int[Tensor, " answer_pos"]) -> float:
    tokens = torch.cat([prompt, answer])[None].to(model.cfg.device)
    logits = prefilled_logits(model, tokens)[0, len(prompt) - 1 : -1].float()
    return -float(torch.nn.functional.cross_entropy(logits, tokens[0, len(prompt) :]))


@torch.no_grad()
def _said(model: Any, tokenizer: Any, prompt: Int[Tensor, " pos"], settings: Mapping[str, Any]) -> str:
    """What greedy decoding says, up to a stop string."""
    output = model.generate(
        prompt[None].to(model.cfg.device),
        max_new_tokens=_most_said(settings),
        do_sample=False,
        stop_at_eos=getattr(tokenizer, "eos_token_id", None) is not None,
        return_type="tokens",
        verbose=False,
    )
    text = str(tokenizer.decode(output[0, len(prompt) :].tolist(), skip_special_tokens=True))
    for stop in settings["generation_kwargs"].get("until") or []:
        # a few-shot answer may begin with the stop string; LongBench strips that first
        text = text.lstrip(stop).split(stop)[0]
    return text


def _judged(document: Mapping[str, Any], said: str) -> float:
    metrics = _metrics()
    function = getattr(metrics, _dataset(str(document["dataset"]))["process_results"].removeprefix("metrics."))
    return float(function(dict(document), [said])["score"])


def _most_said(settings: Mapping[str, Any]) -> int:
    return int(settings["generation_kwargs"]["max_gen_toks"])


def _metrics() -> Any:
    try:
        return importlib.import_module("lm_eval.tasks.longbench.metrics")
    except ImportError as error:
        msg = f"LongBench's metrics are those of the lm-evaluation-harness, which is not installed: {INSTALL}"
        raise ImportError(msg) from error


def _dataset(name: str, where: str | None = None) -> dict[str, Any]:
    """The harness's settings of one dataset."""
    known = _datasets()
    if name.removesuffix("_e") not in known:
        msg = f"{where + ': ' if where else ''}LongBench has no dataset {name!r}; it has {', '.join(sorted(known))}"
        raise ValueError(msg)
    return known[name.removesuffix("_e")]


@cache
def _datasets() -> dict[str, dict[str, Any]]:
    """Every dataset of the harness's own LongBench files; the metrics' code is named in them, not run by reading."""
    _metrics()
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads `!function x` as the string x."""

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    found = {}
    for file in Path(str(files("lm_eval"))).joinpath("tasks", "longbench").glob("*.yaml"):
        content = yaml.load(file.read_text(encoding="utf-8"), Loader)
        if not file.stem.endswith("_e") and "doc_to_text" in content:
            found[str(content["dataset_name"])] = content
    return found
