"""The type of model we are given: TransformerLens' own protocol, which its 3.9 line does not have yet."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformer_lens.model_protocol import TransformerLensModel
else:
    try:
        from transformer_lens.model_protocol import TransformerLensModel
    except ImportError:
        TransformerLensModel = Any

__all__ = ["TransformerLensModel"]
