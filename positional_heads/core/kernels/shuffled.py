"""The plain way to count runs of shuffled content: entry by entry, for kernels without a faster one."""

from collections.abc import Callable

from positional_heads.core.kernels.sums import EntrySums, ShuffleSums
from positional_heads.core.plan import EntryPlan, Positions
from positional_heads.core.rotary import Planes
from positional_heads.core.shuffles import Shuffled


def add_listed_runs(
    shuffled: Shuffled,
    plan: EntryPlan,
    sums: ShuffleSums,
    listed_entries: Callable[[Planes, Planes, Positions], EntrySums],
) -> None:
    """Add the entries of runs from a list of them; see `sums.Kernel.add_runs`.

    Args:
        shuffled: Content, orders and runs of one sequence.
        plan: Which of their entries count.
        sums: Sums of all shuffles.
        listed_entries: The sums over entries at these query and key positions.
    """
    content, orders, runs = shuffled
    device = content.query.device
    for shuffle, halves in enumerate(runs.positions(plan, orders.shape[1])):
        query, key = (planes.contiguous() for planes in content.rotated(orders[shuffle]))
        for half, (query_pos, key_pos) in enumerate(halves):
            sums.add(listed_entries(query, key, (query_pos.to(device), key_pos.to(device))), shuffle, half)
