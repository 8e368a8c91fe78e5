"""Nothing in the tests may reach a network: models are made from configs, or ship with the library."""

import gc
import os
from typing import Any

from tests.support.checked_once import check_each_definition_once
from tests.support.forked_kernels import fork_kernels

os.environ["HF_HUB_OFFLINE"] = "1"

pytest_plugins = ["tests.support.browser", "tests.support.fixtures"]

LONG_ALONE = ("/1_quickstart", "/3_ablation", "/6_research", "/4_length", "/5_with_other", "/test_other_device")


def pytest_configure(config: Any) -> None:
    """Prepare a process that runs tests: one that hands them to others imports nothing, which takes seconds."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        gc.disable()
        check_each_definition_once()
        fork_kernels()


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Put the longest files of one test before the others: begun last, they would keep one worker alone."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONG_ALONE))


def pytest_collection_finish() -> None:
    """Let the garbage collector go through what tests make, and never again through all that they import."""
    gc.collect()
    gc.freeze()
    gc.enable()
