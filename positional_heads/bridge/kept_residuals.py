"""Start a run from the residual stream of an earlier one, where both ablate the same heads in all layers below.

A study runs the same tokens under many sets of heads. Below the lowest layer at which two sets differ, the model
computes the same under both, so the second run can start there. What is ablated below is read off the hooks of each
run, and tokens are compared exactly: the order of runs decides what is saved, never what is computed. That a layer
needs nothing of those below but the residual stream is tried on a probe.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor

from positional_heads.bridge.active_extension import active_extension
from positional_heads.bridge.found_hooks import original
from positional_heads.bridge.model import TransformerLensModel

MOST_BYTES = 2**30
"""Most memory for residuals; runs beyond it start from the embeddings."""
PROBE = 16

_active: "WeakKeyDictionary[Any, KeptResiduals]" = WeakKeyDictionary()


class Residual(NamedTuple):
    """What a layer is called with: the output of the one below it."""

    output: Any
    hooks: list[Any]
    """Every hook below; held so that none takes another's identity."""
    under: tuple[Any, ...]
    """What these hooks ablate."""


@contextmanager
def kept_residuals(model: TransformerLensModel) -> Iterator["KeptResiduals"]:
    """A block inside which plain runs of answers share layers; the model must not change but by ablating heads."""
    _active[model] = KeptResiduals(model)
    try:
        yield _active[model]
    finally:
        _active.pop(model, None)


def active_residuals(model: TransformerLensModel) -> "KeptResiduals | None":
    """The residuals that are kept of this model now."""
    return _active.get(model)


class KeptResiduals:
    """Residuals by run, and by the layer that starts from them."""

    def __init__(self, model: TransformerLensModel) -> None:
        self._model = model
        self._layers = [original(block) for block in model.blocks]
        self._kept: dict[Any, dict[int, Residual]] = {}
        self._starts: Collection[int] = ()
        self._exact: dict[int, bool] = {}
        self._bytes = 0

    def keep(self, starts: Collection[int]) -> None:
        """Keep the residuals that these layers start from in the next runs, and forget others after each."""
        self._starts = starts

    @contextmanager
    def kept(
        self, plain: Any, replaced: Mapping[int, Sequence[Any]], tokens: Int[Tensor, "batch pos"], first: int
    ) -> Iterator[None]:
        """A block for one pass: it starts from a residual if it can, and keeps those that are wanted.

        Args:
            plain: Hugging Face's model, inside a block of `plain_model`.
            replaced: The hooks that ablate heads, by layer.
            tokens: All tokens up to the end of the pass.
            first: Index of the first token of the pass; earlier ones are in a cache.
        """
        run = (active_extension(self._model), first, tokens.shape, tokens.cpu().numpy().tobytes())
        known = self._kept.setdefault(run, {})
        start, wanted = 0, []
        if not getattr(plain.config.get_text_config(), "num_kv_shared_layers", 0):  # later layers reuse keys of earlier
            start = max((layer for layer, one in known.items() if one.under == _under(replaced, layer)), default=0)
            wanted = [layer for layer in self._starts if layer > start and self._is_exact(plain, layer)]
        with ExitStack() as undo:
            if start:
                _start_from(self._layers[:start], known[start].output, undo)
            for layer in [layer for layer in known if layer > start or layer not in self._starts]:
                self._bytes -= _size(known.pop(layer).output)
            for layer in wanted:
                self._keep(known, layer, replaced, undo)
            yield

    def _keep(
        self, known: dict[int, Residual], layer: int, replaced: Mapping[int, Sequence[Any]], undo: ExitStack
    ) -> None:
        def store(module: Any, args: Any, output: Any) -> None:  # noqa: ARG001
            if self._bytes + _size(output) <= MOST_BYTES:
                self._bytes += _size(output)
                hooks = [hook for below in sorted(replaced) if below < layer for hook in replaced[below]]
                known[layer] = Residual(output, hooks, _under(replaced, layer))

        undo.callback(self._layers[layer - 1].register_forward_hook(store).remove)

    def _is_exact(self, plain: Any, layer: int) -> bool:
        """Whether a run that starts at this layer gives the logits of a whole run."""
        if layer not in self._exact:
            self._exact[layer] = self._probe_agrees(plain, layer)
        return self._exact[layer]

    def _probe_agrees(self, plain: Any, layer: int) -> bool:
        tokens = torch.arange(PROBE, device=next(plain.parameters()).device)[None]
        outputs: list[Any] = []
        handle = self._layers[layer - 1].register_forward_hook(lambda *call: outputs.append(call[-1]))
        try:
            whole = plain(input_ids=tokens, use_cache=False).logits
        finally:
            handle.remove()
        if not all(part is None or isinstance(part, Tensor) for part in _parts(outputs[0])):
            return False
        with ExitStack() as undo:
            _start_from(self._layers[:layer], outputs[0], undo)
            return torch.equal(plain(input_ids=tokens, use_cache=False).logits, whole)


def _start_from(layers: Sequence[Any], output: Any, undo: ExitStack) -> None:
    """Let all of these layers return this output, the last one's, until the stack is closed."""
    from transformers import Cache

    hidden = _parts(output)[0]
    for number, layer in enumerate(layers):

        def skipped(*args: Any, number: int = number, **kwargs: Any) -> Any:
            for cache in (one for one in (*args, *kwargs.values()) if isinstance(one, Cache)):
                placeholder = hidden[:, None, :, :1]  # the cache counts tokens by its first layer
                cache.update(placeholder, placeholder, number)
            return output

        undo.callback(_restore_forward, layer, vars(layer).get("forward"))
        layer.forward = skipped


def _restore_forward(layer: Any, forward: Any) -> None:
    del layer.forward
    if forward is not None:  # accelerate's, which moves tensors to the layer's device
        layer.forward = forward


def _under(replaced: Mapping[int, Sequence[Any]], layer: int) -> tuple[Any, ...]:
    """What is ablated below a layer, equal for runs that compute the same there."""
    return tuple((below, *(hook.key for hook in replaced[below])) for below in sorted(replaced) if below < layer)


def _parts(output: Any) -> tuple[Any, ...]:
    return output if isinstance(output, tuple) else (output,)


def _size(output: Any) -> int:
    return sum(part.numel() * part.element_size() for part in _parts(output) if part is not None)
