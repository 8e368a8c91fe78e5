"""A device that is not the CPU, for machines without one: tensors that say they are on a GPU, and compute on the CPU.

As on a GPU, an operation refuses tensors of both devices, except a CPU tensor of one number, or CPU indices; and memory
is not shared with numpy. A run that works here moves every tensor to where it is needed.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "elsewhere"
ATEN = torch.ops.aten
ACROSS = {ATEN.copy_.default, ATEN._to_copy.default}
"""Operations that take tensors of both devices."""
CPU_INDICES = {ATEN.index.Tensor, ATEN.index_put_.default, ATEN.index_put.default, ATEN._index_put_impl_.default}


class Elsewhere(Tensor):
    """A tensor on the other device; `here` has its values."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here):
        form = {
            "strides": here.stride(),
            "dtype": here.dtype,
            "device": f"{NAME}:0",
            "storage_offset": here.storage_offset(),
        }
        made = Tensor._make_wrapper_subclass(cls, here.shape, **form)
        made.here = here
        return made

    def tolist(self):
        return self.here.tolist()

    def __setitem__(self, index, value):
        refuse_both("assignment", [self, *[x for x in (value,) if isinstance(x, Tensor)]], ())
        self.here[tree_map(here, index)] = here(value)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})

    def __repr__(self, **_):
        return f"Elsewhere({self.here})"


class OtherDevice(TorchDispatchMode):
    """Makes tensors on the other device where they are asked for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})


def dispatched(func, args, kwargs):
    """The result of an operation, on the device where it would be."""
    given, _ = tree_flatten((args, kwargs))
    tensors = [x for x in given if isinstance(x, Tensor)]
    elsewhere = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    asked = [x for x in (*given, kwargs.get("device")) if isinstance(x, (torch.device, str)) and is_device(x)]
    if func not in ACROSS:
        refuse_both(func, tensors, args)
    if func is ATEN.copy_.default:
        here(args[0]).copy_(here(args[1]))
        return args[0]
    found = func(*tree_map(here, args), **tree_map(here, kwargs))
    if torch.device(asked[-1]).type != NAME if asked else not elsewhere:
        return found
    known = {id(tensor.here): tensor for tensor in elsewhere}  # an operation in place returns what it was given
    return tree_map(lambda x: known[id(x)] if id(x) in known else moved(x) if isinstance(x, Tensor) else x, found)


def is_device(x):
    return isinstance(x, torch.device) or x.split(":")[0] in {NAME, "cpu"}


def moved(x):
    return Elsewhere(x.resolve_conj().resolve_neg())  # a wrapper cannot say that its values are to be conjugated


def here(x):
    """An argument as it is on the CPU."""
    if isinstance(x, Elsewhere):
        return x.here
    return torch.device("cpu") if isinstance(x, (torch.device, str)) and is_device(x) else x


def refuse_both(func, tensors, args):
    """Refuse tensors of both devices, as PyTorch does."""
    sides = {isinstance(x, Elsewhere) for x in tensors if x.ndim > 0}
    if len(sides) > 1 and not (func in CPU_INDICES and isinstance(args[0], Elsewhere)):
        msg = f"{func}: expected all tensors to be on the same device, found {NAME} and cpu"
        raise RuntimeError(msg)


def registered() -> TorchDispatchMode:
    """The mode in which tensors can be put on the other device; for the rest of this process PyTorch knows its name."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)
    torch.nn.functional.scaled_dot_product_attention, torch.tensor = attention, tensor
    torch.inference_mode = torch.no_grad  # which wraps no tensor
    return OtherDevice()


ATTENTION, TENSOR = torch.nn.functional.scaled_dot_product_attention, torch.tensor


def attention(*args, **kwargs):
    """Attention, whose kernel PyTorch would look up by device."""
    found = ATTENTION(*tree_map(here, args), **tree_map(here, kwargs))
    return Elsewhere(found) if isinstance(args[0], Elsewhere) else found


def tensor(values, *, device=None, **kwargs):
    """A tensor of these values, which PyTorch would make without asking a mode."""
    return TENSOR(values, **kwargs).to(device)
