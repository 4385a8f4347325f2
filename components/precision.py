"""Where half precision is not enough."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32 where its precision is lower, else `x` itself."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
