"""The type checks of the tests, without what costs time and finds nothing.

A function whose annotations name no shapes is checked by beartype alone: jaxtyping would keep the sizes of its axes, of
which it has none, and check its arguments twice. That took a quarter of the suite's time. Where there are shapes, sizes
are kept, and arguments and result are checked by one call of beartype: jaxtyping would check the arguments again with
the result.

Functions within functions are given their type checks once, and not anew each time the outer function runs.
jaxtyping decorates every definition that is executed, and beartype writes and compiles code for each. Most definitions
are executed once, when a module is imported. A hook that is defined inside a function is executed with every call of
it: that took a third of the suite's time. Here the checks of one definition are made once, and shared by all functions
that it makes.
"""

import dataclasses
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any, ForwardRef, Literal, get_args, get_origin

import jaxtyping

Checked = Callable[..., Any]


def named(hint: Any) -> Iterator[str]:
    """The axes that an annotation names, one text for each array; a text, which is not read, may be any: "{}"."""
    if get_origin(hint) is Literal:
        return
    if parts := hint if isinstance(hint, list) else get_args(hint):
        for part in parts:
            yield from named(part)
    elif isinstance(hint, str | ForwardRef):
        yield "{}"
    elif isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        yield hint.dim_str


class CheckedOnce:
    """Stands in for `jaxtyping.jaxtyped`, as the import hook calls it."""

    def __init__(self, jaxtyped: Callable[..., Any]) -> None:
        self._jaxtyped, self._sizes = jaxtyped, jaxtyped("context")
        self._checked: dict[CodeType, Checked] = {}
        self._begun = threading.local()

    def __call__(self, *given: Any, typechecker: Any) -> Any:
        """Decorate a class or function, or return what decorates one."""
        if not given:
            return functools.partial(self, typechecker=typechecker)
        (one,) = given
        if isinstance(one, type):
            if dataclasses.is_dataclass(one) and "__init__" in vars(one):
                one.__init__ = self(one.__init__, typechecker=typechecker)
            return one
        if not isinstance(one, FunctionType):
            return self._jaxtyped(one, typechecker=typechecker)
        if "<locals>" not in one.__qualname__:
            own_class = one.__qualname__.rpartition(".")[0]
            hints = [hint for hint in one.__annotations__.values() if hint != own_class]
            axes = [text for hint in hints for text in named(hint)]
            if inspect.isgeneratorfunction(one) or any("{" in text for text in axes):
                return self._jaxtyped(one, typechecker=typechecker)
            return self._with_sizes(one, typechecker(one)) if axes else typechecker(one)
        if one.__code__ not in self._checked:
            self._checked[one.__code__] = self._jaxtyped(self._relay(one), typechecker=typechecker)
        return self._of(one, self._checked[one.__code__])

    def _with_sizes(self, function: FunctionType, checked: Checked) -> Checked:
        """The checked function, in whose arguments and result an axis has one size."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            with self._sizes:
                return checked(*args, **kwargs)

        return run

    def _functions(self) -> list[Callable[..., Any]]:
        """Functions of this thread whose arguments are being checked: the last one is to run next."""
        if not hasattr(self._begun, "functions"):
            self._begun.functions = []
        return self._begun.functions

    def _relay(self, like: FunctionType) -> FunctionType:
        """A function with the signature of another one, which runs the function whose arguments have been checked."""
        functions = self._functions

        def relay(*args: Any, **kwargs: Any) -> Any:
            return functions().pop()(*args, **kwargs)

        # annotations that are texts are looked up in the module of the function
        made = FunctionType(relay.__code__, like.__globals__, like.__name__, closure=relay.__closure__)
        made.__signature__ = inspect.signature(like)
        made.__qualname__, made.__module__, made.__annotations__ = like.__qualname__, like.__module__, {}
        return made

    def _of(self, function: FunctionType, checked: Checked) -> Checked:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            functions = self._functions()
            before = len(functions)
            functions.append(function)
            try:
                return checked(*args, **kwargs)
            finally:
                del functions[before:]  # still there if the arguments were refused

        return run


def check_each_definition_once() -> None:
    """Let the import hook of jaxtyping use `CheckedOnce` from now on."""
    # What a hooked module imports first is compiled anew by the hook, with warnings that are errors in the tests.
    import transformers.modeling_utils  # noqa: F401

    if not isinstance(jaxtyping.jaxtyped, CheckedOnce):
        jaxtyping.jaxtyped = CheckedOnce(jaxtyping.jaxtyped)
