"""Where this library keeps what it makes once for a user: compiled kernels, and models converted from other formats."""

import os
from pathlib import Path


def user_cache(part: str) -> Path:
    """A folder of the user, existing or not: in POSITIONAL_HEADS_CACHE, or in the user's cache."""
    chosen = os.environ.get("POSITIONAL_HEADS_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return (Path(chosen).expanduser() if chosen else home / "positional_heads") / part
