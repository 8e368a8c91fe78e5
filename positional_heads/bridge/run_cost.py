"""How the cost of a run grows with its length: what progress bars and budgets reckon with, in no unit of time.

Matrix products cost the same for every token, 2 operations for each parameter. Attention, and everything else that is
counted for every query-key pair, costs more for later tokens: 2 operations for each channel and layer, twice for
attention itself. So both are equal at about parameters / (layers x channels) tokens.
"""

from collections.abc import Callable

from positional_heads.bridge.model import TransformerLensModel

REWRITTEN = 3.0
"""Cost of a query-key pair whose score is rewritten, in those of one that is not (SmolLM2, 4096 tokens)."""


def run_costs(model: TransformerLensModel, *, rewritten: bool = False) -> Callable[[int], float]:
    """Cost of running and scoring one sequence by its length, in tokens of a short sequence.

    Args:
        model: A TransformerBridge.
        rewritten: Whether the attention scores are rewritten, as some methods of extending the context do.
    """
    parameters = sum(one.numel() for one in model.parameters())
    equal_at = max(1.0, parameters / (int(model.cfg.n_layers) * int(model.cfg.d_model)))
    slope = (REWRITTEN if rewritten else 1.0) / equal_at

    def cost(length: int) -> float:
        return length * (1 + slope * length)

    return cost
