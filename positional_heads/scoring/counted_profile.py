"""Count a head profile on a text, in the same pass over it as scoring."""

from dataclasses import replace

from positional_heads.bridge.head_weights import kernel_scores_of_model
from positional_heads.bridge.key_cache import layer_caches
from positional_heads.bridge.resolve import NO_ATTENTION
from positional_heads.results.head_profile import HeadProfile
from positional_heads.scoring.checkpoint import Checkpoint
from positional_heads.scoring.counter import EntryCounter
from positional_heads.scoring.profile_result import profile_of
from positional_heads.scoring.score import count_batches, warn_of_wide_bounds


def counted_profile(counter: EntryCounter, saved: Checkpoint, progress: bool) -> HeadProfile:
    """The profile of a run.

    Args:
        counter: Counter of the run, which counts a profile too.
        saved: Where to resume from and save to.
        progress: Show a progress bar.
    """
    assert counter.profile is not None
    sums = count_batches(counter, range(len(counter.data)), saved, None, progress)
    scores = sums.result()
    warn_of_wide_bounds(scores)
    profile = profile_of(sums.profile, scores, counter.profile)
    kernel = kernel_scores_of_model(counter.model, counter.rotary, profile.pairs.turns(int(counter.model.cfg.n_ctx)))
    without_keys = {layer: reason for layer, reason in counter.unscored.items() if reason == NO_ATTENTION}
    return replace(
        profile,
        others={**profile.others, "kernel": kernel},
        provenance={**profile.provenance, "cache": layer_caches(counter.model, without_keys)},
    )
