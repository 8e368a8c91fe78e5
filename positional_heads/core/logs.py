"""Warnings that a process logs once, however often their cause returns."""

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
