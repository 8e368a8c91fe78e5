"""A plan for kvpress' `DuoAttentionPress`: which key heads stream, as a file that a few lines of Python give it.

kvpress (0.5.5) has no file of its own for this: its press fetches DuoAttention's published tables by the name of the
model, and makes the share `head_compression_ratio` of heads with the lowest numbers stream. What it fetches can be
given instead:

```python
import json, numpy as np
from kvpress import DuoAttentionPress

plan = json.load(open("kvpress.json"))
press = DuoAttentionPress(head_compression_ratio=plan["head_compression_ratio"])
heads = np.array(plan["full_attention_heads"])
press.load_attention_pattern = lambda model: (plan["sink_size"], plan["recent_size"], heads)
```

Streaming heads have 0 and the others 1, and the share is that of the streaming ones, so that the press takes exactly
these. It hides their keys between the sinks and the last `recent_size` of the prompt from every token that is
generated; the prompt itself is read in full, and what is generated is never hidden.
"""

import json
from pathlib import Path

from jaxtyping import Bool
from torch import Tensor

from positional_heads.core.arguments import checked
from positional_heads.results.files import ResultFileError
from positional_heads.results.formats.duo_attention import HeadPattern, sinks_and_window
from positional_heads.results.formats.foreign_files import (
    existing_file,
    read_own_json,
    table_of_numbers,
    write_own_kind,
)
from positional_heads.results.formats.planned_heads import refuse_uneven, sizes
from positional_heads.results.head_plan import HeadPlan

KIND = "a plan for kvpress"
FORMAT, VERSION = "positional_heads.kvpress", 1
KEYS = ("sink_size", "recent_size", "head_compression_ratio", "full_attention_heads")


@checked
def write_kvpress(
    streaming: Bool[Tensor, "layer kv_head"] | HeadPlan,
    path: str | Path,
    *,
    sinks: int | None = None,
    window: int | None = None,
) -> Path:
    """Write which key heads stream, for kvpress' `DuoAttentionPress`; `formats.kvpress` says how it is loaded there.

    Args:
        streaming: A plan; or a table that is True for each key head that sees only sinks and a window, as
            `HeadPlan.windowed` is, and False for each that keeps every key. `HeadPlan.full_attention` is the reverse.
        path: The file, e.g. "kvpress.json".
        sinks: Keys at the beginning that a streaming head keeps; a plan has its own.
        window: Keys at the end of the prompt that it keeps; a plan has its own.

    Returns:
        The file written.

    Raises:
        ValueError: If there is no head; if layers of a plan hold different numbers of key heads; if sinks or window are
            missing, or are not those of the plan.
        ResultFileError: If another file has this name.
    """
    plan = streaming if isinstance(streaming, HeadPlan) else None
    sinks, window = sizes(plan, sinks, window)
    if isinstance(streaming, HeadPlan):
        refuse_uneven(streaming, "kvpress")
        streaming = streaming.windowed
    if not streaming.numel():
        msg = f"streaming must have a head, got {list(streaming.shape)}"
        raise ValueError(msg)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "sink_size": sinks,
        "recent_size": window,
        "head_compression_ratio": int(streaming.sum()) / streaming.numel(),
        "full_attention_heads": (~streaming).int().tolist(),
    }
    return write_own_kind(Path(path), json.dumps(content) + "\n", KIND, read_kvpress)


@checked
def read_kvpress(path: str | Path) -> HeadPattern:
    """Read what `write_kvpress` wrote: 0 for a head that streams, 1 for one that sees every key.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is none.
        ResultFileError: If it is damaged, or another file.
    """
    file = existing_file(path, KIND)
    content = read_own_json(file, KIND, FORMAT, VERSION, KEYS)
    values = table_of_numbers(content.get("full_attention_heads"), 2, file, "full_attention_heads")
    share = int((values == 0).sum()) / values.numel()
    if not bool(((values == 0) | (values == 1)).all()) or content.get("head_compression_ratio") != share:
        msg = f"{file}: is not {KIND}: heads must be 0 or 1, and head_compression_ratio the share of 0"
        raise ResultFileError(msg)
    return HeadPattern(values, *sinks_and_window(content, file, KIND))
