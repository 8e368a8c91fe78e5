"""Call every public function and command with values that make no sense, and print every raw error.

A script, run in a plain interpreter by `test_bad_values.py`: the type checker of the tests would refuse many of these
values before the library does. Prints one line for each answer that is neither success nor an error of the library.
"""

import contextlib
import inspect
import io
import linecache
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import typer

import positional_heads as ph
from positional_heads import cli, views
from positional_heads.bridge import resolve
from positional_heads.bridge.active_extension import active_extension
from positional_heads.cli import ablate as cli_ablate
from positional_heads.cli import distances as cli_distances
from positional_heads.cli import extrapolate as cli_extrapolate
from positional_heads.cli import manipulate as cli_manipulate
from positional_heads.cli import plan as cli_plan
from positional_heads.cli import profile as cli_profile
from positional_heads.cli import recommend as cli_recommend
from positional_heads.cli import score as cli_score
from positional_heads.results import formats
from positional_heads.results.scores import HeadScores
from positional_heads.scoring import distance_profile
from positional_heads.scoring.counter import EntryCounter
from positional_heads.studies import (
    ablation,
    candidates,
    checkpoint_sources,
    distance_response,
    emergence,
    extrapolation,
    head_profile,
    manipulation,
    pair_study,
    recommendation,
    set_runs,
)
from positional_heads.studies.tasks import harness_tasks as harness
from positional_heads.studies.tasks.evaluate import TASKS
from tests.support.synthetic_distances import synthetic_distances
from tests.support.synthetic_profile import synthetic_profile

VALUES = (None, "", "x", -1, 0, 1.5, True, float("nan"), float("inf"), [], {}, 10**30, ["x"], b"x")
WORDS = ("", "x", "-1", "1.5", "nan", "9" * 40, ",")
PACKAGE = str(Path(ph.__file__).parent)
MOST_PASSES = 8
"""Forward passes that may be made before something is refused: four probes of layers and first sequences, each
by the bridge and plainly."""
SENTENCE = "In the beginning God created the heaven and the earth. And the earth was void and without form; "
TEXTS = [SENTENCE[:length] for length in range(16, 22)]  # of different lengths, so that each is a batch


class Done(BaseException):
    """Everything was let in, and the long part began."""


class Passes:
    """Counts a model's forward passes."""

    def __init__(self, model: Any) -> None:
        self.made = 0
        model.original_model.register_forward_pre_hook(self.note)

    def note(self, *_: Any) -> None:
        self.made += 1

    note.__module__ = "transformers"  # whose hooks are no reason to refuse a checkpoint


def ours(error: BaseException) -> bool:
    """Whether an error was raised on purpose, by the library, in one line."""
    frame, number = list(traceback.walk_tb(error.__traceback__))[-1]
    file = frame.f_code.co_filename
    line = linecache.getline(file, number).strip()
    said = str(error)
    return file.startswith(PACKAGE) and line.startswith("raise ") and bool(said) and "\n" not in said


def answer(function: Callable[..., Any], arguments: dict[str, Any]) -> str | None:
    """What is wrong with what happens, if anything."""
    before = passes.made
    try:
        result = function(**arguments)
        if isinstance(result, contextlib.AbstractContextManager) and not isinstance(result, Path):
            with result:
                pass
    except Done:
        return None
    except Exception as error:  # noqa: BLE001  whatever it is
        if not ours(error):
            return f"{type(error).__name__}: {str(error)[:100]}"
        if passes.made - before > MOST_PASSES:
            return f"refused after {passes.made - before} passes: {error}"
    return None


def settings_of(name: str) -> list[str]:
    """What a function takes by keyword beside its own parameters."""
    scoring = [field.name for field in fields(ph.ScoringSettings)]
    passkey = [parameter for parameter in inspect.signature(TASKS["passkey"]).parameters if parameter != "model"]
    methods = ["beta_fast", "beta_slow", "attention_factor", "truncate"]
    run = ["attention_mask", "layers", "batch_size", "beyond_context", "plain_text", "settings"]
    own = {
        "score_shard": scoring + run,
        "profile_heads": scoring,
        "evaluate": passkey,
        "extended_rope": methods,
        "rope_method": methods,
    }
    return own.get(name, scoring if name.startswith("score_") else [])


def functions(folder: Path) -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    """Every public function and method, with arguments that make sense."""
    tokens, head = torch.arange(24) % 7 + 65, ph.Head(0, 1)
    scores = ph.score_heads(model, TEXTS, null_repeats=2, resamples=20)
    other = ph.score_heads(model, TEXTS[1:], null_repeats=2, resamples=20)
    comparison, stability = ph.compare(scores, other), ph.compare_all({"a": scores, "b": other})
    examples = ph.head_examples(model, TEXTS[0], head)
    profile = ph.contribution_profile(model, TEXTS, head)
    heads = ph.profile_heads(model, TEXTS, window=4, null_repeats=0, resamples=2, retrieval=None)
    head_profile.counted_profile = reached  # type: ignore[assignment]
    distance_profile.DistanceCounter = reached  # type: ignore[assignment,misc]
    task = TASKS["passkey"](model, length=64, depths=1, examples=1)
    both = model.run_with_cache(tokens[None])[1]
    both.cache_dict.update(ph.dominant_dimension_cache(model, tokens, contributions=True).cache_dict)
    rotated, frequencies = torch.ones(1, 3, 2, 4), torch.tensor([1.0, 0.1])
    text, named = {"model": model, "tokens": TEXTS}, [str(number) for number in tokens.tolist()]
    small = {"null_repeats": 0, "resamples": 2, "layers": [0]}
    given: dict[str, dict[str, Any]] = {
        "score_heads": {**text, **small},
        "score_shard": {**text, "shard": "1/2", "folder": folder / "shards", **small},
        "merge_shards": {"folder": folder},
        "profile_heads": {**text, **small, "retrieval": None},
        "distance_profile": {**text, "layers": [0]},
        "distance_response": {**text, "sinks": 2, "n_random": 1},
        "head_examples": {"model": model, "tokens": TEXTS[0], "heads": [head]},
        "examples_from_cache": {"cache": both, "heads": [head], "tokens": named},
        "contribution_profile": {**text, "heads": [head]},
        "dominant_dimension_cache": {"model": model, "tokens": tokens},
        "cut_text": {"model": model, "texts": TEXTS},
        "ablated_heads": {"model": model, "heads": [head], "mode": "far", "distance": 3},
        "manipulated_pairs": {"model": model, "heads": [head], "pairs": [0], "shared": "split"},
        "ablation_hooks": {"model": model, "heads": [head], "mode": "mean", "reference": TEXTS},
        "window_plan": {"profile": heads},
        "pair_plan": {"profile": heads},
        "pair_study": {"model": model, "profile": heads, "task": task, "n_random": 1},
        "plan_study": {"model": model, "profile": heads, "task": task, "window": 8, "n_random": 1},
        "ablation_study": {"model": model, "scores": scores, "task": task, "counts": [1], "n_random": 1},
        "manipulation_study": {"model": model, "scores": scores, "task": task, "counts": [1], "top": 1, "n_random": 1},
        "extrapolation_study": {
            "model": model,
            "tokens": " ".join(TEXTS),
            "methods": ["linear"],
            "factors": [2],
            "training_length": 64,
            "depths": 1,
            "examples": 1,
        },
        "jump_study": {"model": model, "tokens": " ".join(TEXTS), "training_length": 64, "samples": 8},
        "base_sweep": {
            "model": model,
            "tokens": " ".join(TEXTS),
            "bases": [500.0],
            "training_length": 64,
            "depths": 1,
            "examples": 1,
        },
        "recommend_extension": {
            "model": model,
            "text": " ".join(TEXTS),
            "target_length": 80,
            "methods": ["linear"],
            "training_length": 64,
            "task": None,
        },
        "emergence_study": {
            "checkpoints": {0: lambda: model, 1: lambda: model},
            "text": TEXTS,
            "retrieval": None,
            "null_repeats": 0,
        },
        "evaluate": {"model": model, "task": "passkey", "length": 64, "depths": 1, "examples": 1},
        "evaluate_harness": {"model": model, "tasks": "arc_easy"},
        "harness_task": {"model": model, "task": "arc_easy", "metric": "acc"},
        "extended_rope": {"model": model, "method": "yarn", "factor": 4},
        "rope_method": {"name": "yarn", "factor": 4},
        "self_extend_advice": {"training_length": 64, "target_length": 128},
        "plain_rope": {"model": model},
        "compare": {"a": scores, "b": other},
        "compare_all": {"results": {"a": scores, "b": other}},
        "explore": {"result": scores},
        "resolve_layers": {"model": model},
        "live_rotary_hooks": {"model": model},
        "contribution_hooks": {"model": model},
        "load_bundled_model": {"step": 0},
        "load_model": {"name": "bundled"},
        "load_clex": {"checkpoint": folder},
        "bundled_steps": {},
        "bundled_text": {},
        "pair_contributions": {"rot_q": rotated, "rot_k": rotated, "layout": "half"},
        "unrotated_remainder": {"rot_q": rotated, "rot_k": rotated, "rotary_dim": 2},
        "dominant_dimension": {"contributions": rotated},
        "wavelengths": {"frequencies": frequencies},
        "injective_range": {"frequencies": frequencies, "length": 9},
        "told_apart": {"frequencies": frequencies, "length": 9},
    }
    public = {name for name in ph.__all__ if inspect.isroutine(getattr(ph, name))}
    assert public == given.keys(), public ^ given.keys()
    for name, arguments in given.items():
        yield name, getattr(ph, name), arguments
    yield "ScoringSettings", ph.ScoringSettings, {}
    yield "Head.parse", ph.Head.parse, {"text": "L0H1"}
    methods: dict[str, dict[str, Any]] = {"top": {"k": 1}}
    for name in ("top", "interval", "positional_heads", "significant"):
        yield f"HeadScores.{name}", getattr(scores, name), methods.get(name, {})
    for name in ("values", "interval", "by_key_head", "groups"):
        yield f"HeadProfile.{name}", getattr(heads, name), {"name": "reach"}
    for name in ("values", "interval"):
        yield f"DistanceProfile.{name}", getattr(synthetic_distances(), name), {"name": "reach"}
    yield "HeadProfile.mean_contribution", heads.mean_contribution, {}
    yield "Change.interval", comparison.rho_change.interval, {}
    yield "HeadScores.load", HeadScores.load, {"path": folder}
    yield "HeadExamples.indices", examples.indices, {"heads": [head]}
    yield "ContributionProfile.index", profile.index, {"head": head}
    yield "ContributionProfile.binned", profile.binned, {}
    yield "AnswerTask.measure", task.measure, {"model": model}
    seen: dict[str, dict[str, Any]] = {
        "rho_heat_map": {"scores": scores},
        "rho_distribution": {"scores": scores},
        "comparison": {"comparison": comparison},
        "stability": {"stability": stability},
        "profile_maps": {"profile": heads},
        "measure_correlations": {"profile": heads},
        "pair_curves": {"profile": heads, "heads": [head]},
        "distance_curves": {"profile": synthetic_distances()},
        "allocation_curves": {"scores": scores, "heads": [head]},
        "attention_view": {"examples": examples},
        "token_view": {"examples": examples},
        "contribution_view": {"examples": examples, "head": head, "query": 3},
        "contribution_by_distance": {"profile": profile},
        "distinguishability": {"frequencies": frequencies, "length": 9},
        "dose_response": {"study": None},
        "loss_by_budget": {"study": None},
        "loss_by_factor": {"made": None},
        "emergence_tracks": {"study": None},
        "extrapolation_curves": {"study": None},
        "method_comparison": {"study": None},
        "methods_told_apart": {"study": None},
        "write_report": {"result": scores, "folder": folder / "report"},
        "write_report_page": {"folder": folder / "report"},
    }
    assert seen.keys() | {"Explorer", "View"} == set(views.__all__), set(views.__all__) ^ seen.keys()
    for name, arguments in seen.items():
        yield f"views.{name}", getattr(views, name), arguments
    yield from file_formats(folder)


def file_formats(folder: Path) -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    """Every function for files of other tools, with arguments that make sense."""
    made, sizes = synthetic_profile(), {"sinks": 1, "window": 2}
    norm = made.pairs.query_center.norm(dim=-1) + 1  # no mean length is below the length of the mean
    heads, made = torch.ones(2, 3), replace(made, pairs=replace(made.pairs, query_norm=norm))
    file, pattern = {"path": folder / "file"}, {"folder": folder / "pattern"}
    seen: dict[str, dict[str, Any]] = {
        "mha2mla_ranks": {"profile": made},
        "compare_mha2mla": {"profile": made, "ranks": formats.mha2mla_ranks(made)},
        "published": {"name": formats.PUBLISHED[0]},
        "read_duo_attention": pattern,
        "write_duo_attention": {"values": heads, **pattern, **sizes},
        "write_kvpress": {"streaming": heads > 0, **file, **sizes},
        "write_tables": {"profile": made, "folder": folder / "tables"},
    }
    seen |= {name: file for name in formats.__all__ if name.startswith("read_") and name not in seen}
    others = ("write_mha2mla_ranks", "write_fasa_agreement", "write_triattention")
    seen |= {name: {"profile": made, **file} for name in others}
    assert {*seen} == {name for name in formats.__all__ if inspect.isroutine(getattr(formats, name))}
    for name, arguments in seen.items():
        yield f"formats.{name}", getattr(formats, name), arguments
    yield "HeadPattern.streaming", formats.HeadPattern(heads.double(), 1, 2).streaming, {"share": 0.5}


def in_python(folder: Path) -> Iterator[str]:
    """What is wrong with calls of functions."""
    for name, function, arguments in functions(folder):
        own = inspect.signature(function).parameters.values()
        parameters = [one.name for one in own if one.kind != one.VAR_KEYWORD]
        for parameter in dict.fromkeys([*parameters, *settings_of(name)]):
            for value in VALUES:
                tried.append(name)
                wrong = answer(function, {**arguments, parameter: value})
                if wrong is not None:
                    yield f"{name}({parameter}={value!r}): {wrong}"


def in_the_shell(folder: Path) -> Iterator[str]:
    """What is wrong with commands."""
    text, command = folder / "text.txt", typer.main.get_command(cli.app)
    text.write_text(" ".join(TEXTS))
    ph.score_heads(model, TEXTS, null_repeats=0, resamples=2).save(scores := folder / "short.safetensors")
    ph.score_heads(model, TEXTS[1:], null_repeats=0, resamples=2).save(other := folder / "other.safetensors")
    ph.profile_heads(model, TEXTS, retrieval=None, null_repeats=0, resamples=2).save(folder / "heads.safetensors")
    short = ["--text", str(text), "--out", str(folder / "new")]
    distance_profile.DistanceCounter = reached  # type: ignore[assignment,misc]
    EntryCounter.begin = ablation.run_parts = reached  # type: ignore[method-assign]
    set_runs.run_parts = extrapolation.run_parts = recommendation.run_parts = candidates.run_parts = reached
    manipulation.run_parts = reached
    task = ["--length", "64", "--depths", "1", "--examples", "1"]
    given = {
        "score": ["bundled", *short, "--length", "24", "--sequences", "2", "--null-repeats", "0"],
        "profile": ["bundled", *short, "--length", "24", "--sequences", "2", "--null-repeats", "0"],
        "distances": ["bundled", *short, "--length", "24", "--sequences", "2"],
        "ablate": ["bundled", *short, "--scores", str(scores), "--length", "64", "--depths", "1", "--examples", "1"],
        "manipulate": ["bundled", *short[2:], "--scores", str(scores), *task],
        "extrapolate": ["bundled", *short, "--training-length", "64", "--factors", "2", "--methods", "linear"],
        "plan": [str(folder / "heads.safetensors"), "--study", "bundled", "--window", "8", *short[2:], *task],
        "recommend": ["bundled", *short, "--training-length", "32", "--target-length", "48", "--task", "none"],
        "emerge": ["bundled", *short, "--sequences", "2", "--task", "passkey", "--task-length", "64", *task[2:]],
        "show": [str(folder)],
        "compare": [str(scores), str(other)],
        "merge": [str(folder)],
        "report": [str(folder)],
        "explore": [str(folder)],
    }
    assert given.keys() == command.commands.keys()
    typer.main.get_command = lambda _: command  # not made anew by each call of the program
    for name, arguments in given.items():
        options = [one for one in command.commands[name].params if not getattr(one, "is_flag", False)]
        for option in options:
            for word in WORDS:
                added = [word, *arguments[1:]] if option.opts[0][0] != "-" else [*arguments, f"{option.opts[0]}={word}"]
                tried.append(name)
                wrong = shell_answer([name, *added])
                if wrong is not None:
                    yield f"{name} {option.opts[0]} {word!r}: {wrong}"


def shell_answer(arguments: list[str]) -> str | None:
    """What is wrong with what a command does, if anything."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.app(arguments)
        except Done:
            return None
        except SystemExit as end:
            status = end.code
        except BaseException as error:  # noqa: BLE001  whatever it is
            return f"{type(error).__name__}: {str(error)[:100]}"
    if status not in {0, 1, 2} or "Traceback" in said.getvalue() or "fault of positional-heads" in said.getvalue():
        return f"status {status}: {said.getvalue().strip().splitlines()[-1][:160]}"
    return None


def reached(*_: Any, **__: Any) -> None:
    """The long part began."""
    raise Done


def first_part_only(parts: Mapping[str, Any], run: Callable[[Any], Any], **_: Any) -> None:
    """The long part began with the first of its parts."""
    run(next(iter(parts.values())))
    raise Done


def proven_once(prove: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Prove what the model rotates once, and not for each value: extensions apart, nothing here changes it."""
    plain = prove(model)
    return lambda other: plain if active_extension(other) is None else prove(other)


if __name__ == "__main__":
    tried: list[str] = []
    model = ph.load_bundled_model()
    resolve._resolved = proven_once(resolve._resolved)
    passes = Passes(model)
    ablation.run_parts = set_runs.run_parts = extrapolation.run_parts = pair_study.run_parts = first_part_only
    manipulation.run_parts = recommendation.run_parts = candidates.run_parts = first_part_only
    distance_response.run_parts = first_part_only
    harness.LoadedTasks.load = reached  # type: ignore[assignment]
    checkpoint_sources.Checkpoint.load = lambda _: model  # type: ignore[method-assign]
    emergence.score_heads = reached  # type: ignore[assignment]
    modules = (cli_score, cli_profile, cli_distances, cli_ablate, cli_manipulate, cli_extrapolate, cli_plan)
    for module in (*modules, cli_recommend):
        module.load_named = lambda *_: model  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as temporary:
        kinds = {"python": in_python, "shell": in_the_shell}
        for kind in sys.argv[1:] or kinds:
            for wrong_answer in kinds[kind](Path(temporary)):
                print(wrong_answer, flush=True)  # noqa: T201
    print(f"tried {len(tried)}")  # noqa: T201
