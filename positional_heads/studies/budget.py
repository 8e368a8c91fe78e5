"""What of a study fits into a number of minutes: decided before it starts, from parts that are measured first.

A study has plans, each leaving out more than the one before, always in the same order and always whole parts. The
first that fits is run. A budget counts from the call, so what is finished already costs nothing; it is a plan, not a
time limit: nothing that was begun is cut off.
"""

import logging
import math
import sys
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from tqdm.auto import tqdm

from positional_heads.core.arguments import checked
from positional_heads.studies.resume import FinishedParts, now

logger = logging.getLogger(__name__)


@runtime_checkable
class Plan(Protocol):
    """What of a study is run."""

    def as_json(self) -> dict[str, Any]:
        """The plan for a file."""
        ...


SomePlan = TypeVar("SomePlan", bound=Plan)


@dataclass(frozen=True)
class Planned(Generic[SomePlan]):
    """A plan that was decided on.

    Attributes:
        plan: The plan.
        account: For provenance: the budget that decided, what everything takes, finished parts included, both in
            minutes, and what is left out.
    """

    plan: SomePlan
    account: dict[str, Any]

    @property
    def notes(self) -> list[str]:
        """What was left out, as a sentence for the record; none if nothing was."""
        if not self.account["left_out"]:
            return []
        return [
            f"Left out for a budget of {self.account['minutes']:g} minutes (all would have taken about "
            f"{self.account['all_minutes']:g}): {'; '.join(self.account['left_out'])}."
        ]


class Budget:
    """Minutes that a study may take, counted from now."""

    def __init__(self, minutes: float) -> None:
        """Begin to count.

        Raises:
            ValueError: If this is not a positive number.
        """
        check_budget(minutes)
        self.minutes = minutes
        self._began = now()

    def planned(
        self,
        plans: Sequence[SomePlan],
        seconds: Callable[[SomePlan], float],
        finished: FinishedParts,
        *,
        taken: float,
        left_out: Callable[[SomePlan], list[str]],
        least: str,
        progress: bool,
    ) -> Planned[SomePlan]:
        """The first plan that fits, or the one that was decided on before the study was interrupted.

        Args:
            plans: The plan of the whole study, and what may be run instead, the largest first.
            seconds: How long a plan takes from now on.
            finished: Where the decision is kept.
            taken: How long what is finished of the whole study took.
            left_out: What the first plan has that a plan has not, in words.
            least: What the last plan still has, in words.
            progress: Whether a progress bar is shown; the decision is then written where the bar will be.

        Raises:
            ValueError: If not even the last plan fits.
        """
        before = _decided_before(plans, finished)
        chosen = next((one for minutes, one in before if minutes == self.minutes), None)
        if chosen is None:
            # minutes of this call that no part has taken, and those of parts, of this call or finished before
            everything = (now() - self._began - finished.spent + taken + seconds(plans[0])) / 60
            chosen = self._decided(
                plans, seconds, everything, [one for minutes, one in before if minutes > self.minutes], left_out, least
            )
            question = {"minutes": self.minutes, "asked": plans[0].as_json()}
            finished.decide({"question": question, "plan": chosen.plan.as_json(), "account": chosen.account})
        missing = chosen.account["left_out"]
        line = (
            f"budget of {chosen.account['minutes']:g} minutes: about {chosen.account['all_minutes']:g} for everything; "
            f"{'leaving out ' + '; '.join(missing) if missing else 'nothing is left out'}; about "
            f"{two_digits(seconds(chosen.plan) / 60):g} minutes left to run"
        )
        if progress:
            tqdm.write(line, sys.stderr)
        logger.log(logging.WARNING if missing and not progress else logging.INFO, line)
        return chosen

    def _decided(
        self,
        plans: Sequence[SomePlan],
        seconds: Callable[[SomePlan], float],
        everything: float,
        larger: Sequence[Planned[SomePlan]],
        left_out: Callable[[SomePlan], list[str]],
        least: str,
    ) -> Planned[SomePlan]:
        spent = now() - self._began

        def fits(plan: SomePlan) -> bool:
            return spent + seconds(plan) <= 60 * self.minutes

        # what is finished is asked apart: less of it need not be, with other random sets
        place = 0 if fits(plans[0]) else bisect_left(plans, True, key=fits)
        for one in larger:
            if fits(one.plan) and plans.index(one.plan) <= place:
                return one
        if place == len(plans):
            needed = (spent + seconds(plans[-1])) / 60
            msg = (
                f"budget {self.minutes:g} is too small: {least} would take about {two_digits(needed, math.ceil):g} "
                f"minutes, everything about {two_digits(max(everything, needed), math.ceil):g}; give that many, or a "
                "smaller task"
            )
            raise ValueError(msg)
        account = {
            "minutes": self.minutes,
            "all_minutes": two_digits(everything),
            "left_out": left_out(plans[place]),
        }
        return Planned(plans[place], account)


def _decided_before(plans: Sequence[SomePlan], finished: FinishedParts) -> list[tuple[float, Planned[SomePlan]]]:
    """Every decision about the same study, with the minutes it was asked for; the largest plans first."""
    asked, by_json = plans[0].as_json(), [plan.as_json() for plan in plans]
    found = [
        (one["question"]["minutes"], by_json.index(one["plan"]), one["account"])
        for one in finished.decisions
        if one["question"]["asked"] == asked and one["plan"] in by_json
    ]
    return [
        (minutes, Planned(plans[place], account)) for minutes, place, account in sorted(found, key=lambda one: one[1])
    ]


@checked
def check_budget(budget: float | None) -> None:
    """Refuse a budget that is not a positive number of minutes; None passes.

    Raises:
        ValueError: If it is zero, negative or not finite.
    """
    if budget is not None and not budget > 0:
        msg = f"budget {budget} must be a number of minutes above 0, e.g. 30"
        raise ValueError(msg)


def two_digits(value: float, rounding: Callable[[float], float] = round) -> float:
    """A number to two significant digits."""
    if value <= 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{rounding(value / step) * step:.2g}")
