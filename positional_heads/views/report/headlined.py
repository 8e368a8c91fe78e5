"""Which result of a folder stands first, in the report and in the explorer alike.

Of several scores, those of what was profiled: everything else on the page is then about the same text. Where that does
not tell, a folder called "scores" comes before the others, which stand in alphabetical order.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.record import Record
from positional_heads.results.scores import HeadScores


def result_folders(folder: Path) -> list[Path]:
    """A folder and its subfolders, in the order in which their results are shown."""
    inside = (path for path in folder.iterdir() if path.is_dir())
    return [folder, *sorted(inside, key=lambda path: (path.name != "scores", path))]


def after_headline(record: Record, profiles: Sequence[HeadProfile]) -> bool:
    """Whether these are scores of something else than the first profile is of: sort by this, and they come last."""
    return isinstance(record, HeadScores) and bool(profiles) and _measured(record) != _measured(profiles[0])


def far_from(scored: Sequence[Path], examples: Path) -> int:
    """How far a file of examples is from the first scores: 0 beside them, 2 beside other ones, else 1."""
    beside = [file for file in scored if file.parent == examples.parent]
    return 1 if not beside else 2 * (beside[0] != scored[0])


def _measured(record: Record) -> tuple[Any, Any]:
    """The weights and the tokens that a result is of."""
    model, data = (record.provenance.get(part) or {} for part in ("model", "data"))
    return model.get("weights"), data.get("sha256")
