"""Nothing in the tests may reach a network: models are made from configs, or ship with the library."""

import os

from tests.support.checked_once import check_each_definition_once
from tests.support.forked_kernels import fork_kernels

os.environ["HF_HUB_OFFLINE"] = "1"
check_each_definition_once()
fork_kernels()

pytest_plugins = ["tests.support.fixtures"]
