"""The table of `benchmarks.real`: what was measured, beside what it was before and what it should become."""

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.timing import Seconds, markdown_table, median_ratio

GROUPS = ("one", "four", "heads", "long", "memory", "study", "start")
FORWARD, BRIDGE = "Hugging Face forward, sdpa", "TransformerBridge forward, as booted"
EXACT, NULL, SAMPLED = "exact, no null", "default null of 20", "sampled 65536 entries, no null"
EVERY_NULL, SAMPLED_NULL = "exact, 5 exact nulls", "sampled 65536 entries, default null of 20"
STUDY, IMPORT, HELP, FIRST = "ablation study", "`import positional_heads`", "`positional-heads --help`", "first call"
MEMORY = "exact, no null: MiB at the peak"
PROFILE, RETRIEVED = "head profile, no null", "head profile with retrieval score, no null"
TARGETS: dict[tuple[str, str], tuple[str, str, str]] = {
    ("one", BRIDGE): ("2.3", "", ""),
    ("one", EXACT): ("3.1", "1.9", "1.6"),
    ("one", NULL): ("28", "3.5", "2.2"),
    ("one", EVERY_NULL): ("9.4", "", ""),
    ("one", SAMPLED): ("2.4", "1.4", "1.2"),
    ("one", SAMPLED_NULL): ("17", "3.5", "2.2"),
    ("long", EXACT): ("", "3", "2"),
    ("memory", MEMORY): ("", "512", "256"),
    ("study", STUDY): ("1.4", "0.9", "0.5"),
    ("start", IMPORT): ("", "0.2 s", ""),
    ("start", HELP): ("", "0.4 s", ""),
}
"""Before this benchmark existed, first mark, goal; of SmolLM2-135M with 1024, 8192 and, in the study, 768 tokens."""
Row = dict[str, Any]


def over(ours: Seconds, plain: Seconds, parts: int) -> Row:
    """Seconds of one part on the clock, and the ratio to the forward pass, on the clock and of CPU time."""
    return {
        "seconds": statistics.median(ours.wall) / parts,
        "measured": f"{median_ratio(ours.wall, plain.wall) / parts:.2f}",
        "cpu": f"{median_ratio(ours.cpu, plain.cpu) / parts:.2f}",
    }


def table(groups: dict[str, list[Row]]) -> str:
    """One line per row that was measured."""
    header = ["", "tokens", "sequences a call", "seconds", "x forward", "of CPU time", "before", "first mark", "goal"]
    lines = []
    for group in (name for name in GROUPS if name in groups):
        for row in groups[group]:
            seconds = f"{row['seconds']:.3g}" if "seconds" in row else ""
            measured = [seconds, row["measured"], row.get("cpu", "")]
            targets = TARGETS.get((group, row["name"]), ("", "", ""))
            lines.append([row["name"], str(row["tokens"]), str(row["sequences"]), *measured, *targets])
    return markdown_table(header, lines)


def merged(groups: dict[str, list[Row]], described: Row, folder: Path | None) -> dict[str, list[Row]]:
    """These groups, and the others of an earlier run of the same model in the same setting."""
    file = None if folder is None else folder / "real.json"
    earlier = json.loads(file.read_text()) if file is not None and file.exists() else {}
    return earlier["groups"] | groups if earlier.get("setting") == described else groups


def text(groups: dict[str, list[Row]], described: Row) -> str:
    """The table, and what is said about it."""
    rows = [row for name in GROUPS for row in groups.get(name, [])]
    parts = [
        "# A real model",
        "Seconds are on the clock, for one sequence; then the ratio to Hugging Face's own forward pass with sdpa and "
        "logits on the same tokens, on the clock and of CPU time. Medians of rounds in which all take turns. The last "
        "three columns are of SmolLM2-135M with 1024 tokens (8192 in long rows, 768 in the study) on two AVX-512 "
        f"cores. {', '.join(f'{name} {value}' for name, value in described.items())}.",
        table(groups),
        *[row["said"] for row in rows if "said" in row],
    ]
    if profiles := [f"- {row['name']}, {row['tokens']} tokens: {row['profile']}" for row in rows if "profile" in row]:
        parts += ["## Where the time goes", "\n".join(profiles)]
    return "\n\n".join(parts)
