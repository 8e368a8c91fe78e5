"""The jump study: how far the step of D at the training length follows from queries and keys of shorter texts.

The paper shows abrupt changes of the dominant dimension beyond the training length and leaves their cause open. Two can
be told apart: rotation, by which the same queries and keys give other contributions at a larger distance; and what the
model computes in a longer text, by which queries and keys change. The first is predicted here, and nothing is fitted.
"""

import numpy as np
import torch
from jaxtyping import Complex, Float64, Int
from torch import Tensor

from positional_heads.bridge.active_extension import active_extension
from positional_heads.bridge.capture import capture
from positional_heads.bridge.layer_vectors import LayerVectors
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.prefill import refuse_fixed_tables
from positional_heads.bridge.provenance import library_versions, model_provenance
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.sequences import Text
from positional_heads.core.arguments import checked, in_range
from positional_heads.core.heads import Head
from positional_heads.core.predicted_curve import predicted_curve
from positional_heads.core.rotary import wavelengths
from positional_heads.results.jump_study import JumpStudy
from positional_heads.results.scores import kept
from positional_heads.scoring.score import score_heads
from positional_heads.studies.extrapolation import data_provenance, long_rows
from positional_heads.studies.rotary_kinds import rotations

WINDOW = 16
"""The training length over the distances averaged on either side of it."""
PLACES = 64
"""Distances at which curves are predicted, over all and around the training length."""
BEYOND = 4
"""Windows by which sequences are longer than the training length, so that distances beyond it have many pairs."""


@checked
def jump_study(
    model: TransformerLensModel,
    tokens: Text,
    *,
    training_length: int | None = None,
    sequences: int = 8,
    samples: int = 2048,
    pairs: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> JumpStudy:
    """Measure every head's curve of D beyond the training length, and predict it from other, shorter sequences.

    A prediction pairs queries and keys at random, both within the training length and before rotation, and turns them
    to every distance (docs/equations.md, section 6). Half of the sequences are measured, the others predict.

    Args:
        model: A TransformerBridge, not extended.
        tokens: A long text, of which the first sequences are taken; or token ids of at least 1.25 training lengths.
        training_length: Tokens that the model was trained on; read from its configuration when None.
        sequences: Number of sequences to cut from a text, at least 2; all that it holds, with a warning, where it holds
            fewer.
        samples: Pairs of a query and a key of each head that predict.
        pairs: Query-key pairs sampled of each measured sequence, as in `score_heads`; all when None.
        seed: Seed of all samples.
        progress: Show a progress bar over the measured sequences.

    Raises:
        ValueError: If the text is too short, the training length is below 64, or a number makes no sense.
        RuntimeError: If the rotation of the model is extended or manipulated.
        UnsupportedModelError: If the model is not rotary, is an extended checkpoint, or cannot run past its context.
    """
    in_range("sequences", sequences, 2)
    in_range("samples", samples, 1, 2**24)
    in_range("seed", seed, 0)
    if active_extension(model) is not None:
        msg = "the model's rotation is extended or manipulated: leave that block, the jump is the trained model's"
        raise RuntimeError(msg)
    rotation = rotations(model, training_length)
    trained = rotation.training_length
    window = trained // WINDOW
    if window < BEYOND:
        msg = f"training_length {trained} is too short for a window of {WINDOW} in it: at least {WINDOW * BEYOND}"
        raise ValueError(msg)
    longest = trained + BEYOND * window
    refuse_fixed_tables(model, longest)
    rows = long_rows(model, tokens, longest, sequences, "the jump study")
    if len(rows) < 2:  # noqa: PLR2004
        msg = f"one sequence of {longest} tokens: at least two are needed, one to measure and one to predict from"
        raise ValueError(msg)
    measured_rows, others = rows[: len(rows) // 2], rows[len(rows) // 2 :, :trained]
    scores = score_heads(
        model, measured_rows, beyond_context=True, null_repeats=0, pairs=pairs, seed=seed, progress=progress
    )
    generator = torch.Generator().manual_seed(seed)
    products: dict[int, Complex[Tensor, "head sample pair"]] = {}
    resolved = resolve_layers(model).layers

    def visit(vectors: LayerVectors) -> None:
        products[vectors.rotary.layer] = _paired(vectors, samples, generator)

    capture(model, others.to(model.cfg.device), list(resolved.values()), visit)
    heads, curves, frequencies, places = [], [], [], _places(trained, window)
    for layer, product in sorted(products.items()):
        heads += [Head(layer, head) for head in range(len(product))]
        own = rotation.tables[layer].inv_freq.double()
        curves.append(_predictions(product, own, places, trained))
        frequencies += [own] * len(product)
    predicted, held = (torch.cat([one[which] for one in curves]) for which in (0, 1))
    curve, used = kept(scores.curve), {"measured": len(measured_rows), "predicting": len(others)}
    return JumpStudy(
        heads=heads,
        measured=torch.stack([curve[head] for head in heads])[:, : trained + window].double(),
        places=places,
        predicted=predicted,
        held=held,
        frequencies=torch.nn.utils.rnn.pad_sequence(frequencies, batch_first=True, padding_value=torch.nan),
        training_length=trained,
        provenance={
            "versions": library_versions(),
            "model": model_provenance(model),
            "data": data_provenance(rows, longest, tokens),
            "settings": {"samples": samples, "pairs": pairs, "seed": seed} | used,
        },
    )


def _paired(vectors: LayerVectors, samples: int, generator: torch.Generator) -> Complex[Tensor, "head sample pair"]:
    """Queries times conjugate keys before rotation, of any sequence and position of a batch."""
    content = [vectors.content(row) for row in range(len(vectors.rot_q))]
    query, key = (torch.cat([one[which] for one in content], dim=1).cpu() for which in (0, 1))
    key = key.repeat_interleave(len(query) // len(key), dim=0)
    drawn = [torch.randint(query.shape[1], (samples,), generator=generator) for _ in range(2)]
    return query[:, drawn[0]] * key[:, drawn[1]].conj()


def _places(trained: int, window: int) -> Int[Tensor, " place"]:
    """Distances to predict at: as far apart as they are long, and evenly in the windows around the training length."""
    spread = np.geomspace(1, trained, PLACES).round().astype(np.int64)
    around = trained + np.linspace(-window, window - 1, min(2 * window, PLACES)).round().astype(np.int64)
    return torch.from_numpy(np.unique(np.concatenate([[0], spread, around])))


def _predictions(
    product: Complex[Tensor, "head sample pair"],
    frequencies: Float64[Tensor, " pair"],
    places: Int[Tensor, " place"],
    trained: int,
) -> tuple[Float64[Tensor, "head place"], Float64[Tensor, "head place"]]:
    """Mean D at some distances: with every pair turned on, and with pairs held where their angles would be unseen."""
    distances = places[:, None].double()
    unseen = wavelengths(frequencies) > trained
    held = torch.where(unseen, distances.clamp(max=trained - 1), distances)
    return predicted_curve(product, frequencies, distances), predicted_curve(product, frequencies, held)
