"""Score the attention heads of a RoPE language model by how they use token distance. See README.md.

Public names are listed once, in `__init__.pyi`, and loaded when first used: importing TransformerLens takes seconds,
and `--help` should not wait for it.
"""

from importlib.metadata import version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("positional-heads")
