"""Scoring and ablating a real model, beside Hugging Face's own forward pass on the same tokens.

`python -m benchmarks.real`, about 20 minutes for SmolLM2-135M on two quiet cores; `--rows` measures some groups and
keeps what was measured of the others. Times are on the clock, on all cores; the ratio of CPU times stands beside.
One-off costs and peak memory are those of processes of their own.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import positional_heads as ph
from benchmarks.memory import peak_of_child, print_peak
from benchmarks.models import real_model
from benchmarks.profiling import seconds_by_part, told
from benchmarks.real_table import (
    BRIDGE,
    EVERY_NULL,
    EXACT,
    FIRST,
    FORWARD,
    GROUPS,
    HELP,
    IMPORT,
    MEMORY,
    NULL,
    PROFILE,
    RETRIEVED,
    SAMPLED,
    SAMPLED_NULL,
    STUDY,
    Row,
    merged,
    over,
    table,
    text,
)
from benchmarks.timing import RESULTS, Seconds, rounds, setting, write_results

SCORES: dict[str, dict[str, Any]] = {
    EXACT: {"pairs": "all"},
    NULL: {"pairs": "all", "null_repeats": 20},
    EVERY_NULL: {"pairs": "all", "null_repeats": 5, "null_pairs": "all"},
    SAMPLED: {"pairs": 65536},
    SAMPLED_NULL: {"pairs": 65536, "null_repeats": 20},
}


TOY: dict[str, Any] = {"repeats": 1, "lengths": (32, 64, 200), "counts": (2,), "n_random": 1}
WHOLE_STUDY: dict[str, Any] = {"n_random": 6, "examples": 2}


@dataclass(frozen=True)
class Measurement:
    """What is measured: a model in a folder, and sizes.

    Attributes:
        folder: Of the model.
        repeats: Rounds.
        lengths: Tokens of a sequence in the groups one and four, long and memory, and study.
        counts: Heads of the sets of the study.
        n_random: Random sets of each size.
        examples: Examples at each of three depths, at long and at short range.
        profile: Say as well where the time goes.
    """

    folder: str
    repeats: int = 5
    lengths: tuple[int, int, int] = (1024, 8192, 768)
    counts: tuple[int, ...] = (5, 14, 27)
    n_random: int = 2
    examples: int = 1
    profile: bool = False

    @cached_property
    def plain(self) -> Any:
        """Hugging Face's model, as a user loads it."""
        from transformers import AutoModelForCausalLM

        settings = {"attn_implementation": "sdpa", "dtype": torch.float32}
        return AutoModelForCausalLM.from_pretrained(self.folder, **settings).eval()

    @cached_property
    def bridge(self) -> Any:
        """The model as scoring and ablation take it."""
        return ph.load_model(self.folder, device="cpu")

    @cached_property
    def text(self) -> torch.Tensor:
        """Tokens of the bundled text."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        return torch.tensor(tokenizer(ph.bundled_text(), add_special_tokens=False, verbose=False)["input_ids"])

    def tokens(self, sequences: int, length: int) -> torch.Tensor:
        """The beginning of the bundled text, cut."""
        return self.text[: sequences * length].view(sequences, length)

    def one(self) -> Iterator[Row]:
        """One sequence per call."""
        yield from self._scored(self.tokens(1, self.lengths[0]), list(SCORES), bridge=True)

    def four(self) -> Iterator[Row]:
        """Four sequences per call, which share its fixed costs."""
        yield from self._scored(self.tokens(4, self.lengths[0]), [EXACT, NULL, SAMPLED])

    def long(self) -> Iterator[Row]:
        """One long sequence."""
        yield from self._scored(self.tokens(1, self.lengths[1]), [EXACT])

    def heads(self) -> Iterator[Row]:
        """Head profiles of four sequences per call, beside exact scores of the same."""
        tokens = self.tokens(4, self.lengths[0])
        settings: dict[str, Any] = {"pairs": "all", "beyond_context": True}
        works: dict[str, Callable[[], Any]] = {
            FORWARD: lambda: forward(self.plain, tokens[:1]),
            EXACT: lambda: self.score(tokens, pairs="all"),
            PROFILE: lambda: ph.profile_heads(self.bridge, tokens, retrieval=None, **settings),
            RETRIEVED: lambda: ph.profile_heads(self.bridge, tokens, **settings),
        }
        seconds = rounds(works, self.repeats)
        for name in works:
            shared = 1 if name == FORWARD else len(tokens)
            row = {"name": name, "tokens": tokens.shape[1], "sequences": shared}
            row |= over(seconds[name], seconds[FORWARD], shared)
            if name in {PROFILE, RETRIEVED}:
                ratio = over(seconds[name], seconds[EXACT], 1)
                row["said"] = f"A {name}, costs {ratio['measured']} times exact scores ({ratio['cpu']} of CPU time)."
            yield row

    def _scored(self, tokens: torch.Tensor, names: list[str], *, bridge: bool = False) -> Iterator[Row]:
        works = self._works(tokens, names, bridge)
        rounds(self._works(tokens[:, :64], names, bridge), 1, warm_up=False)  # prepares what a first call needs
        seconds = rounds(works, self.repeats, warm_up=False)
        for name, work in works.items():
            shared = len(tokens) if name in names else 1
            row = {"name": name, "tokens": tokens.shape[1], "sequences": shared}
            row |= over(seconds[name], seconds[FORWARD], shared)
            yield row | (self._profiled(work) if name in names else {})

    def _works(self, tokens: torch.Tensor, names: list[str], bridge: bool) -> dict[str, Callable[[], Any]]:
        works: dict[str, Callable[[], Any]] = {FORWARD: lambda: forward(self.plain, tokens[:1])}
        if bridge:
            works[BRIDGE] = lambda: forward(self.bridge, tokens[:1])
        return works | {name: lambda name=name: self.score(tokens, **SCORES[name]) for name in names}

    def score(self, tokens: torch.Tensor, **settings: Any) -> Any:
        """Scores of these sequences."""
        return ph.score_heads(self.bridge, tokens, beyond_context=True, **settings)

    def _profiled(self, work: Callable[[], Any]) -> Row:
        return {"profile": told(seconds_by_part(work))} if self.profile else {}

    def memory(self) -> Iterator[Row]:
        """Peak memory of processes of their own, above the loaded model."""
        found = {}
        for name, child in ((f"{FORWARD}: MiB at the peak", "forward"), ("without logits", "body"), (MEMORY, "score")):
            arguments = ("--child", child, "--model", self.folder, "--length", str(self.lengths[1]))
            found[child] = peak_of_child("benchmarks.real", *arguments)["peak"]
            row = {"name": name, "tokens": self.lengths[1], "sequences": 1, "measured": f"{found[child]:.0f}"}
            if child == "score":
                row["measured"] += f", {found[child] - found['body']:+.0f} over the forward pass without logits"
            yield row

    def study(self) -> Iterator[Row]:
        """An ablation study, per set and answer."""
        from positional_heads.core.head_sets import distinct_sets

        length = self.lengths[2]
        tokens, plain, spent = self.tokens(1, length), Seconds(), Seconds()
        scores = self.score(tokens, pairs=65536)
        settings = {"counts": self.counts, "n_random": self.n_random, "singles": "none"}
        settings |= {"length": length, "depths": 3, "examples": self.examples, "beyond_context": True}
        studies = []

        def work() -> None:
            studies.append(ph.ablation_study(self.bridge, scores, "passkey", **settings))

        forward(self.plain, tokens)
        for number in range(self.repeats + 1):
            if number == self.repeats // 2:
                spent.time(work)
            else:
                plain.time(lambda: forward(self.plain, tokens))
        sets, answers = len(distinct_sets(studies[0].cells)), len(studies[0].rows)
        mean = Seconds(spent.cpu * len(plain.cpu), spent.wall * len(plain.wall))
        row = {"name": STUDY, "tokens": length, "sequences": 1, **over(mean, plain, sets * answers)}
        row["said"] = (
            f"The study: passkey, {sets} sets of up to {self.counts[-1]} heads, {answers} answers, zero, run once."
        )
        yield row | self._profiled(work)

    def start(self) -> Iterator[Row]:
        """One-off costs."""
        runs = {
            IMPORT: lambda: python("-c", "import positional_heads"),
            HELP: lambda: python("-m", "positional_heads", "--help"),
        }
        nothing = rounds({"nothing": lambda: python("-c", "pass")}, self.repeats)["nothing"]
        for name, run in runs.items():
            spent = statistics.median(rounds({name: run}, self.repeats)[name].wall)
            said = f"{spent:.2f} s, of which Python {statistics.median(nothing.wall):.2f} s"
            yield {"name": name, "tokens": "", "sequences": "", "measured": said}
        arguments = ("--child", "first", "--model", self.folder, "--length", str(self.lengths[0]))
        calls = peak_of_child("benchmarks.real", *arguments)
        said = f"{calls['first']:.2f} s, a later one {calls['later']:.2f} s"
        yield {"name": f"{FIRST}, {EXACT}", "tokens": self.lengths[0], "sequences": 1, "measured": said}

    def child(self, task: str, length: int) -> None:
        """Do one task and print a line of numbers, for a parent.

        Args:
            task: `forward`, `body` (without logits), `score`, or `first`.
            length: Tokens.
        """
        tokens = self.tokens(1, length)
        score = lambda some: self.score(some, pairs="all")  # noqa: E731
        tasks = {
            "forward": lambda some: forward(self.plain, some),
            "body": lambda some: forward(self.plain, some, logits_to_keep=1),
            "score": score,
        }
        if task == "first":
            spent = Seconds()
            for _ in range(2):
                spent.time(lambda: score(tokens))
            print(json.dumps(dict(zip(("first", "later"), spent.wall, strict=True))))
            return
        tasks[task](tokens[:, :64])
        print_peak(lambda: tasks[task](tokens))


@torch.no_grad()
def forward(model: Any, tokens: torch.Tensor, **settings: Any) -> None:
    """A forward pass, with the logits of every token."""
    model(tokens, **settings)


def python(*arguments: str) -> None:
    """Run Python in a process of its own."""
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)


def main() -> None:
    """Measure, show and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="folder of a model; see benchmarks/models.py when left out")
    parser.add_argument("--rows", default=",".join(GROUPS), help="groups to measure, separated by commas; all")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which medians are taken")
    parser.add_argument("--whole-study", action="store_true", help="6 random sets of each size and 12 answers")
    parser.add_argument("--profile", action="store_true", help="say as well where the time goes")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--results", type=Path, help="folder for real.md and real.json; benchmarks/results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    with real_model(given.model) as (folder, model):
        sizes = TOY if given.toy else {"repeats": given.repeats} | (WHOLE_STUDY if given.whole_study else {})
        measurement = Measurement(folder, profile=given.profile, **sizes)
        if given.child:
            measurement.child(given.child, given.length)
            return
        described = {"model": model, **setting(), "rounds": measurement.repeats}
        results = given.results or (None if given.toy else RESULTS)
        groups = {}
        for name in given.rows.split(","):
            groups[name] = list(getattr(measurement, name)())
            print(table({name: groups[name]}), flush=True)
        groups = merged(groups, described, results)
        write_results("real", text(groups, described), {"setting": described, "groups": groups}, results)


if __name__ == "__main__":
    main()
