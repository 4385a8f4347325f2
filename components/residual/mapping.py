"""The token-dependent part of hyper-connections on a manifold."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from components.precision import at_least_float32, full_precision
from components.spec import Site


class Mapping(nn.Module):
    """The linear map from all streams of a token to its mixing logits, before gates and biases.

    One root mean square over all n * d entries, applied after the product, which is the same and cheaper.

    Attributes:
        fn: [outputs, n d]; columns are stream-major.
        base: [outputs].
        scale: [gates].
    """

    def __init__(self, site: Site, streams: int, outputs: int, gates: int, alpha: float) -> None:
        super().__init__()
        width = streams * site.dims.hidden_size
        # Random rows: with all of them zero the streams would stay copies of each other for ever.
        self.fn = nn.Parameter(torch.empty(outputs, width).normal_(0.0, site.dims.initializer_range))
        self.wide = ("fn",)
        self.base = nn.Parameter(torch.zeros(outputs))
        self.scale = nn.Parameter(torch.full((gates,), alpha))
        self.eps = site.dims.rms_norm_eps

    def logits(self, state: Float[Tensor, "b s n d"]) -> Float[Tensor, "o m"]:
        """One column per token, so that everything after it runs along tokens."""
        flat = at_least_float32(state).flatten(2).flatten(0, 1)
        inverse_rms = torch.rsqrt(flat.square().mean(-1) + self.eps)
        with full_precision(flat):
            return (self.fn.to(flat.dtype) @ flat.T) * inverse_rms
