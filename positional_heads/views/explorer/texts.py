"""The texts of an explorer: tokens, and of each head and query token the keys that get the most attention.

Numbers of query-key pairs are whole numbers of 16 bits in base64, because a text of thousands of tokens has millions.
"""

import base64
from typing import Any

import numpy as np

from positional_heads.results.head_examples import HeadExamples
from positional_heads.results.text import SPACE, printable, readable_tokens

ROOM = 3_600_000
"""Characters for the numbers of all heads of a text."""
ENOUGH, FEWEST = 0.995, 16
"""Share of a query's attention beyond which no more keys are shown, but for so many."""
PER_ENTRY = 8
"""Characters for key, attention and dominant dimension of a query-key pair."""
MOST = 65535
"""The largest whole number of 16 bits; for a dimension it means an unknown one."""
TITLE = 40
"""Characters of a text in its title."""
ENCODING: dict[str, dict[str, Any]] = {
    "counts": {
        "dtype": "<u2",
        "shape": ["tokens"],
        "meaning": "keys of each query; those of a query begin at the sum of the counts before it, the key with most "
        "attention first",
    },
    "keys": {"dtype": "<u2", "shape": ["sum of counts"], "meaning": "position of the key"},
    "attention": {"dtype": "<u2", "shape": ["sum of counts"], "meaning": f"attention = code / {MOST}"},
    "dominant": {
        "dtype": "<u2",
        "shape": ["sum of counts"],
        "meaning": f"dominant dimension (pair index) = code / {MOST - 1} * (pairs - 1); {MOST} where it is unknown",
    },
}


def text_parts(
    examples: HeadExamples, run: str, room: int = ROOM
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The text of some examples, and the keys of each of its queries, as an explorer's document holds them.

    Left out are keys whose attention rounds to 0, keys beyond those that get 99.5% of it together and the first 16, and
    keys of least attention where the text has no room for all. What the attention of a query adds up to says how much.

    Args:
        examples: What `head_examples` returned; of older files, which hold no keys, the first tokens are shown.
        run: Id of the run that they are, like "run-1".
        room: Characters for the numbers of all heads.

    Returns:
        The text; and of each head, by its name, its numbers by the id of the text.
    """
    name = f"text-{run.removeprefix('run-')}"
    tokens = readable_tokens(examples.tokens)
    keys, attention, dominant = _entries(examples)
    codes = np.round(np.clip(attention, 0, 1) * MOST).astype("<u2")
    shown = (keys >= 0) & (codes > 0)
    shown[..., FEWEST:] &= (np.cumsum(attention, -1) - attention)[..., FEWEST:] < ENOUGH
    kept = _fitting(shown.sum(-1), (room - 3 * shown[..., 0].size) // PER_ENTRY)
    shown[..., kept:] = False
    details = {}
    for at, head in enumerate(examples.heads):
        known = np.isfinite(dominant[at])
        dimension = np.clip(np.nan_to_num(dominant[at]) / max(1, examples.n_pairs - 1), 0, 1) * (MOST - 1)
        own = {
            "counts": shown[at].sum(-1),
            "keys": keys[at][shown[at]],
            "attention": codes[at][shown[at]],
            "dominant": np.where(known, np.round(dimension), MOST)[shown[at]],
        }
        details[str(head)] = {name: {field: _encoded(values) for field, values in own.items()}}
    notes = [printable(note, newlines=False) for note in examples.notes]
    if not examples.n_kept and examples.n_detailed < len(tokens):
        notes.append(
            f"The keys of the first {examples.n_detailed} tokens only: the file is of an older version. For those of "
            "every token, run the command again that wrote it."
        )
    text = {
        "id": name,
        "run": run,
        "title": _title(tokens),
        "tokens": tokens,
        "heads": [str(head) for head in examples.heads],
        "pairs": examples.n_pairs,
        "kept": kept,
        "notes": notes,
        "encoding": ENCODING,
    }
    return [text], details


def _entries(examples: HeadExamples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys, their attention and dominant dimension [head query key], most attention first."""
    if examples.kept_keys is not None and examples.kept_pattern is not None and examples.kept_dominant is not None:
        kept = examples.kept_pattern.float(), examples.kept_dominant.float()
        return examples.kept_keys.int().numpy(), kept[0].numpy(), kept[1].numpy()
    pattern, dominant = (one.float().numpy() for one in (examples.pattern, examples.dominant))
    order = np.argsort(-pattern, axis=-1, kind="stable")
    shape = (len(examples.heads), len(examples.tokens), examples.n_detailed)
    keys, attention, dimension = np.full(shape, -1), np.zeros(shape), np.full(shape, np.nan)
    first = slice(examples.n_detailed)
    attention[:, first], dimension[:, first] = (np.take_along_axis(x, order, -1) for x in (pattern, dominant))
    keys[:, first] = order
    return keys, attention, dimension


def _fitting(counts: np.ndarray, room: int) -> int:
    """The most keys of each query for which there is room.

    Args:
        counts: Keys that each query of each head has.
        room: Entries of all heads at most.
    """
    low, high = 0, int(counts.max(initial=0))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(counts, middle).sum() <= room else (low, middle - 1)
    return low


def _encoded(values: np.ndarray) -> str:
    return base64.b64encode(values.astype("<u2").tobytes()).decode()


def _title(tokens: list[str]) -> str:
    start = "".join(tokens[:TITLE]).replace(SPACE, " ").strip()
    more = "..." if len(start) > TITLE else ""
    return f"{len(tokens)} tokens: {start[:TITLE]}{more}"
