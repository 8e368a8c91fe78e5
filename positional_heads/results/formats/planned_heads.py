"""A head plan as the tools for streaming heads know it: one table of key heads, with one window and some first keys."""

from positional_heads.core.arguments import in_range
from positional_heads.results.head_plan import HeadPlan


def refuse_uneven(plan: HeadPlan, tool: str) -> None:
    """Refuse a plan that no table with as many key heads in every layer can hold.

    Raises:
        ValueError: If layers hold different numbers of key heads.
    """
    numbers = {one for one in plan.cache.held.tolist() if one >= 0} | {plan.windowed.shape[1]}
    if len(numbers) > 1:
        msg = (
            f"{tool} has one table with as many key heads in every layer, and layers of this model hold "
            f"{', '.join(map(str, sorted(numbers)))}: its files cannot say which have a window"
        )
        raise ValueError(msg)


def sizes(plan: HeadPlan | None, sinks: int | None, window: int | None) -> tuple[int, int]:
    """First keys and window: those of a plan, else those given.

    Raises:
        ValueError: If a plan has others, if there is neither a plan nor a number, or if a number makes no sense.
    """
    given = {"sinks": sinks, "window": window}
    if plan is not None:
        for name, number in given.items():
            if number not in {None, getattr(plan, name)}:
                msg = f"{name} {number}: the plan has {getattr(plan, name)}; leave it out, or plan with {name}={number}"
                raise ValueError(msg)
        return plan.sinks, plan.window
    if sinks is None or window is None:
        msg = f"{' and '.join(name for name, number in given.items() if number is None)} missing: a tensor has none"
        raise ValueError(f"{msg}; give sinks= and window=, or a plan instead of a tensor")
    in_range("sinks", sinks, 0)
    in_range("window", window, 1)
    return sinks, window
