"""Nothing in the tests may reach a network: models are made from configs, or ship with the library."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

pytest_plugins = ["tests.support.fixtures"]
