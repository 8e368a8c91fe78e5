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

from positional_heads.core.arguments import checked, in_range
from positional_heads.results.files import ResultFileError
from positional_heads.results.formats.duo_attention import HeadPattern, sinks_and_window
from positional_heads.results.formats.foreign_files import (
    existing_file,
    read_own_json,
    table_of_numbers,
    write_own_kind,
)

KIND = "a plan for kvpress"
FORMAT, VERSION = "positional_heads.kvpress", 1


@checked
def write_kvpress(streaming: Bool[Tensor, "layer kv_head"], path: str | Path, *, sinks: int, window: int) -> Path:
    """Write which key heads stream, for kvpress' `DuoAttentionPress`; `formats.kvpress` says how it is loaded there.

    Args:
        streaming: Whether each key head sees only sinks and a window.
        path: The file, e.g. "kvpress.json".
        sinks: Keys at the beginning that a streaming head keeps.
        window: Keys at the end of the prompt that it keeps.

    Returns:
        The file written.

    Raises:
        ValueError: If there is no head.
        ResultFileError: If another file has this name.
    """
    in_range("sinks", sinks, 0)
    in_range("window", window, 1)
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
    content = read_own_json(file, KIND, FORMAT, VERSION)
    values = table_of_numbers(content.get("full_attention_heads"), 2, file, "full_attention_heads")
    share = int((values == 0).sum()) / values.numel()
    if not bool(((values == 0) | (values == 1)).all()) or content.get("head_compression_ratio") != share:
        msg = f"{file}: is not {KIND}: heads must be 0 or 1, and head_compression_ratio the share of 0"
        raise ResultFileError(msg)
    return HeadPattern(values, *sinks_and_window(content, file, KIND))
