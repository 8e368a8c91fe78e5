"""Two GPUs that are not there: tensors of this block carry a device by name, and refuse operands of another one.

Numbers are computed on the CPU, by the same code, so they are those of a run on one device. Checked is what a machine
with several GPUs checks: that no operation mixes tensors of two devices, and that NumPy gets none of a GPU.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

CPU = torch.device("cpu")
MAY_HAVE_INDICES = {"__getitem__", "__setitem__", "index_put_"}
"""Take indices of the CPU."""
TO_NUMPY = {"numpy", "__array__"}


class PretendedDevices(TorchFunctionMode):
    """A block whose tensors are where they were put, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Any = WeakIdKeyDictionary()

    def place(self, tensor: torch.Tensor, device: Any) -> torch.Tensor:
        """Say where a tensor is."""
        self.places[tensor] = torch.device(device)
        return tensor

    def of(self, tensor: torch.Tensor) -> torch.device:
        """Where a tensor is: the CPU unless it was put elsewhere."""
        return self.places.get(tensor, CPU)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self._attribute(func, args, kwargs)
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if name in {"to", "cpu", "cuda"}:
            return self._moved(name, args, kwargs)
        if name in TO_NUMPY and self.of(operands[0]).type != "cpu":
            msg = f"can't convert {self.of(operands[0])} device type tensor to numpy"
            raise TypeError(msg)
        asked = kwargs.pop("device", None)
        device = self._common(name, operands) if asked is None or operands else CPU
        result = func(*args, **kwargs)
        return tree_map(lambda leaf: self._placed(leaf, device if asked is None else asked, operands), result)

    def _attribute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        (owner, *_) = args
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        if attribute == "device":
            return self.of(owner)
        if attribute == "is_cuda":
            return self.of(owner).type == "cuda"
        return tree_map(lambda leaf: self._placed(leaf, self.of(owner), [owner]), func(*args, **kwargs))

    def _moved(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        tensor, *rest = args
        device = kwargs.pop("device", None)
        if name != "to":
            device, rest = "cpu" if name == "cpu" else "cuda:0", []
        elif rest and isinstance(rest[0], torch.Tensor):
            device, rest = self.of(rest[0]), [rest[0].dtype]
        elif rest and isinstance(rest[0], str | torch.device | int):
            device, *rest = rest
        place = self.of(tensor) if device is None else torch.device(device)
        moved = tensor.to(*rest, **kwargs) if rest or kwargs else tensor
        if moved is tensor and place != self.of(tensor):
            moved = tensor.clone()
        return moved if moved is tensor else self.place(moved, place)

    def _common(self, name: str, operands: Sequence[torch.Tensor]) -> torch.device:
        """The device of an operation; scalars of the CPU go with any."""
        places = [self.of(one) for one in operands if one.ndim or self.of(one) != CPU]
        allowed = {CPU, *places[:1]} if name in MAY_HAVE_INDICES else {*places[:1]}
        if not {*places} <= allowed and name != "copy_":
            msg = f"Expected all tensors to be on the same device, but {name} got {', '.join(map(str, places))}"
            raise RuntimeError(msg)
        return places[0] if places else CPU

    def _placed(self, leaf: Any, device: Any, operands: Sequence[torch.Tensor]) -> Any:
        if isinstance(leaf, torch.Tensor) and not any(leaf is one for one in operands):
            self.place(leaf, device)
        return leaf


@contextmanager
def layers_apart(model: Any, homes: Sequence[str]) -> Iterator[PretendedDevices]:
    """A block in which a bridge's layers are on these devices in turn, and everything else on the first.

    As accelerate dispatches a model: a layer's arguments are moved to its device, and the last output to the first.
    """
    hugging_face = model.original_model
    layers = [block.original_component for block in model.blocks]
    inside = {
        id(tensor): number for number, layer in enumerate(layers) for tensor in [*layer.parameters(), *layer.buffers()]
    }
    mode = PretendedDevices()
    for tensor in [*hugging_face.parameters(), *hugging_face.buffers()]:
        mode.place(tensor, homes[inside.get(id(tensor), 0) % len(homes)])
    handles = []

    def moved(values: Any, device: str) -> Any:
        return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, values)

    def moving(device: str) -> Callable[..., Any]:
        return accelerates(lambda module, args, kwargs: moved((args, kwargs), device))

    def accelerates(hook: Callable[..., Any]) -> Callable[..., Any]:
        hook.__module__ = "accelerate.hooks"  # which is no reason against a plain run
        return hook

    for number, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(moving(homes[number % len(homes)]), with_kwargs=True))
    handles.append(layers[-1].register_forward_hook(accelerates(lambda module, args, output: moved(output, homes[0]))))
    before, model.cfg.device = model.cfg.device, homes[0]
    try:
        with mode, patch.object(torch.cuda, "mem_get_info", lambda device: (2**30, 2**30)):
            yield mode
    finally:
        model.cfg.device = before
        for handle in handles:
            handle.remove()
