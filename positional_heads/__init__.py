"""Which attention heads of a rotary language model carry long distances? See README.md.

Everything below is loaded when first used: importing the host takes seconds that `--help` should not cost.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from positional_heads.caching import dominant_dimension_cache
    from positional_heads.contribution_profile import contribution_profile
    from positional_heads.contributions import dominant_dimension, pair_contributions, unrotated_remainder
    from positional_heads.distinguishability import injective_range, told_apart, wavelengths
    from positional_heads.example_records import HeadExamples
    from positional_heads.examples import examples_from_cache, head_examples
    from positional_heads.heads import Head
    from positional_heads.host.ablation import ablated_heads, ablation_hooks
    from positional_heads.host.admission import UnsupportedModelError
    from positional_heads.host.contribution_hooks import contribution_hooks
    from positional_heads.host.extrapolation.choosing import rope_method
    from positional_heads.host.extrapolation.clex import load_clex
    from positional_heads.host.extrapolation.extension import extended_rope
    from positional_heads.host.extrapolation.methods import SelfExtendAdvice, self_extend_advice
    from positional_heads.host.extrapolation.plain_rope import plain_rope
    from positional_heads.host.layers import RotaryLayer, RotaryModel, resolve_layers
    from positional_heads.host.live_hooks import live_rotary_hooks
    from positional_heads.host.sequences import cut_text
    from positional_heads.profiles import ContributionProfile
    from positional_heads.ray_executor import RayExecutor
    from positional_heads.result_files import ResultFileError
    from positional_heads.results import HeadScores, NullScores
    from positional_heads.scoring import score_heads, score_shard
    from positional_heads.settings import ScoringSettings
    from positional_heads.shards import merge_shards
    from positional_heads.studies.ablation import ablation_study
    from positional_heads.studies.ablation_results import AblationStudy
    from positional_heads.studies.extrapolation import base_sweep, extrapolation_study
    from positional_heads.studies.extrapolation_results import ExtrapolationStudy
    from positional_heads.tasks.examples import AnswerTask, Example, Task
    from positional_heads.tasks.measuring import TaskResult, evaluate
    from positional_heads.zoo.bundled import bundled_steps, bundled_text, load_bundled_model, load_model

__version__ = "0.1.0"

_HOMES = {
    "AblationStudy": "studies.ablation_results",
    "AnswerTask": "tasks.examples",
    "ContributionProfile": "profiles",
    "Example": "tasks.examples",
    "ExtrapolationStudy": "studies.extrapolation_results",
    "Head": "heads",
    "HeadExamples": "example_records",
    "HeadScores": "results",
    "NullScores": "results",
    "RayExecutor": "ray_executor",
    "ResultFileError": "result_files",
    "RotaryLayer": "host.layers",
    "RotaryModel": "host.layers",
    "ScoringSettings": "settings",
    "SelfExtendAdvice": "host.extrapolation.methods",
    "Task": "tasks.examples",
    "TaskResult": "tasks.measuring",
    "UnsupportedModelError": "host.admission",
    "ablated_heads": "host.ablation",
    "ablation_hooks": "host.ablation",
    "ablation_study": "studies.ablation",
    "base_sweep": "studies.extrapolation",
    "bundled_steps": "zoo.bundled",
    "bundled_text": "zoo.bundled",
    "contribution_hooks": "host.contribution_hooks",
    "contribution_profile": "contribution_profile",
    "cut_text": "host.sequences",
    "dominant_dimension": "contributions",
    "dominant_dimension_cache": "caching",
    "evaluate": "tasks.measuring",
    "examples_from_cache": "examples",
    "extended_rope": "host.extrapolation.extension",
    "extrapolation_study": "studies.extrapolation",
    "head_examples": "examples",
    "injective_range": "distinguishability",
    "live_rotary_hooks": "host.live_hooks",
    "load_bundled_model": "zoo.bundled",
    "load_clex": "host.extrapolation.clex",
    "load_model": "zoo.bundled",
    "merge_shards": "shards",
    "pair_contributions": "contributions",
    "plain_rope": "host.extrapolation.plain_rope",
    "resolve_layers": "host.layers",
    "rope_method": "host.extrapolation.choosing",
    "score_heads": "scoring",
    "score_shard": "scoring",
    "self_extend_advice": "host.extrapolation.methods",
    "told_apart": "distinguishability",
    "unrotated_remainder": "contributions",
    "wavelengths": "distinguishability",
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
