"""Which attention heads of a rotary language model carry long distances? See README.md.

Everything below is loaded when first used: importing the host takes seconds that `--help` should not cost.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from positional_heads.bridge.ablation import ablated_heads, ablation_hooks
    from positional_heads.bridge.admission import UnsupportedModelError
    from positional_heads.bridge.contribution_hooks import contribution_hooks
    from positional_heads.bridge.dominant_cache import dominant_dimension_cache
    from positional_heads.bridge.live_hooks import live_rotary_hooks
    from positional_heads.bridge.resolve import RotaryLayer, RotaryModel, resolve_layers
    from positional_heads.bridge.rope_scaling.clex import load_clex
    from positional_heads.bridge.rope_scaling.extended_rope import extended_rope
    from positional_heads.bridge.rope_scaling.methods import SelfExtendAdvice, self_extend_advice
    from positional_heads.bridge.rope_scaling.names import rope_method
    from positional_heads.bridge.rope_scaling.plain_rope import plain_rope
    from positional_heads.bridge.sequences import cut_text
    from positional_heads.core.contributions import dominant_dimension, pair_contributions, unrotated_remainder
    from positional_heads.core.heads import Head
    from positional_heads.core.wavelengths import injective_range, told_apart, wavelengths
    from positional_heads.results.ablation import AblationStudy
    from positional_heads.results.extrapolation import ExtrapolationStudy
    from positional_heads.results.files import ResultFileError
    from positional_heads.results.head_examples import HeadExamples
    from positional_heads.results.profile import ContributionProfile
    from positional_heads.results.scores import HeadScores, NullScores
    from positional_heads.scoring.head_examples import examples_from_cache, head_examples
    from positional_heads.scoring.profile import contribution_profile
    from positional_heads.scoring.ray_executor import RayExecutor
    from positional_heads.scoring.score import score_heads, score_shard
    from positional_heads.scoring.settings import ScoringSettings
    from positional_heads.scoring.shards import merge_shards
    from positional_heads.studies.ablation import ablation_study
    from positional_heads.studies.extrapolation import base_sweep, extrapolation_study
    from positional_heads.studies.tasks.evaluate import TaskResult, evaluate
    from positional_heads.studies.tasks.task import AnswerTask, Example, Task
    from positional_heads.zoo.bundled import bundled_steps, bundled_text, load_bundled_model, load_model

__version__ = "0.1.0"

_HOMES = {
    "AblationStudy": "results.ablation",
    "AnswerTask": "studies.tasks.task",
    "ContributionProfile": "results.profile",
    "Example": "studies.tasks.task",
    "ExtrapolationStudy": "results.extrapolation",
    "Head": "core.heads",
    "HeadExamples": "results.head_examples",
    "HeadScores": "results.scores",
    "NullScores": "results.scores",
    "RayExecutor": "scoring.ray_executor",
    "ResultFileError": "results.files",
    "RotaryLayer": "bridge.resolve",
    "RotaryModel": "bridge.resolve",
    "ScoringSettings": "scoring.settings",
    "SelfExtendAdvice": "bridge.rope_scaling.methods",
    "Task": "studies.tasks.task",
    "TaskResult": "studies.tasks.evaluate",
    "UnsupportedModelError": "bridge.admission",
    "ablated_heads": "bridge.ablation",
    "ablation_hooks": "bridge.ablation",
    "ablation_study": "studies.ablation",
    "base_sweep": "studies.extrapolation",
    "bundled_steps": "zoo.bundled",
    "bundled_text": "zoo.bundled",
    "contribution_hooks": "bridge.contribution_hooks",
    "contribution_profile": "scoring.profile",
    "cut_text": "bridge.sequences",
    "dominant_dimension": "core.contributions",
    "dominant_dimension_cache": "bridge.dominant_cache",
    "evaluate": "studies.tasks.evaluate",
    "examples_from_cache": "scoring.head_examples",
    "extended_rope": "bridge.rope_scaling.extended_rope",
    "extrapolation_study": "studies.extrapolation",
    "head_examples": "scoring.head_examples",
    "injective_range": "core.wavelengths",
    "live_rotary_hooks": "bridge.live_hooks",
    "load_bundled_model": "zoo.bundled",
    "load_clex": "bridge.rope_scaling.clex",
    "load_model": "zoo.bundled",
    "merge_shards": "scoring.shards",
    "pair_contributions": "core.contributions",
    "plain_rope": "bridge.rope_scaling.plain_rope",
    "resolve_layers": "bridge.resolve",
    "rope_method": "bridge.rope_scaling.names",
    "score_heads": "scoring.score",
    "score_shard": "scoring.score",
    "self_extend_advice": "bridge.rope_scaling.methods",
    "told_apart": "core.wavelengths",
    "unrotated_remainder": "core.contributions",
    "wavelengths": "core.wavelengths",
}

__all__ = [
    "AblationStudy",
    "AnswerTask",
    "ContributionProfile",
    "Example",
    "ExtrapolationStudy",
    "Head",
    "HeadExamples",
    "HeadScores",
    "NullScores",
    "RayExecutor",
    "ResultFileError",
    "RotaryLayer",
    "RotaryModel",
    "ScoringSettings",
    "SelfExtendAdvice",
    "Task",
    "TaskResult",
    "UnsupportedModelError",
    "ablated_heads",
    "ablation_hooks",
    "ablation_study",
    "base_sweep",
    "bundled_steps",
    "bundled_text",
    "contribution_hooks",
    "contribution_profile",
    "cut_text",
    "dominant_dimension",
    "dominant_dimension_cache",
    "evaluate",
    "examples_from_cache",
    "extended_rope",
    "extrapolation_study",
    "head_examples",
    "injective_range",
    "live_rotary_hooks",
    "load_bundled_model",
    "load_clex",
    "load_model",
    "merge_shards",
    "pair_contributions",
    "plain_rope",
    "resolve_layers",
    "rope_method",
    "score_heads",
    "score_shard",
    "self_extend_advice",
    "told_apart",
    "unrotated_remainder",
    "wavelengths",
]


def __getattr__(name: str) -> Any:
    if name == "views":
        return import_module(f"{__name__}.views")
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    helpers = {"Any", "TYPE_CHECKING", "import_module"}  # what completion should not offer
    return sorted({*globals(), *__all__, "views"} - helpers)
