"""Warnings that a process logs once, however often their cause returns; and errors in one line."""

import functools
import logging


@functools.cache
def warn_once(logger: str, message: str) -> None:
    """Log a warning unless this process has logged it before.

    Args:
        logger: Name of the logger, `__name__` of the caller.
        message: The warning.
    """
    logging.getLogger(logger).warning(message)


def error_reason(error: Exception, most: int = 400) -> str:
    """What an error says, in one line; the kind of error too where it says nothing but a missing key, or nothing.

    Args:
        error: The error.
        most: Characters at most.
    """
    said = " ".join(str(error).split())[:most]
    return said if said and not isinstance(error, KeyError) else f"{type(error).__name__} {said}".strip()
