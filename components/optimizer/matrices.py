"""Which matrices a model's parameters are, for update rules that treat each matrix as a whole."""

from jaxtyping import Float
from torch import Tensor, nn


def row_blocks(model: nn.Module) -> list[tuple[nn.Parameter, int]]:
    """Every trainable parameter once, with the number of matrices that its rows are; 0 where it is none.

    Modules say it in `row_blocks` (`components/slots.py`); shape decides the rest.
    """
    found: dict[nn.Parameter, int] = {}
    for module in model.modules():
        declared = getattr(module, "row_blocks", {})
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                found.setdefault(parameter, declared.get(name, int(parameter.ndim >= 2)))
    return list(found.items())


def as_matrices(x: Float[Tensor, "... rows columns"], blocks: int) -> Float[Tensor, "k r c"]:
    """All matrices of a parameter: one per index of its leading axes and block of rows."""
    return x.reshape(-1, x.shape[-2] // blocks, x.shape[-1])
