"""Compression by plain means, without gates."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from components.compressor.blocks import BlockCompressor, slots, streams
from components.precision import at_least_float32, full_precision
from components.registry import register
from components.spec import Cost, NoOptions, Site


@register("mean_pool", source="Compressive Transformer, arXiv 1911.05507; ablation of DeepSeek-V4's gates")
class MeanPool(BlockCompressor):
    """Each entry is the mean of its block's projections: `gated` with all gates equal.

    The first entry of an overlapping compressor is the mean of its own block alone.

    Attributes:
        kv: [o*c, d], o = 2 with overlap, else 1.
        norm: [c].
    """

    Config = NoOptions

    def __init__(self, config: NoOptions, site: Site, *, width: int) -> None:
        super().__init__()
        dims, layer = site.dims, site.layer
        self.ratio, self.overlap, self.eps = layer.ratio, layer.overlap, dims.rms_norm_eps
        shape = (streams(site) * width, dims.hidden_size)
        self.kv = nn.Parameter(torch.empty(shape).normal_(0.0, dims.initializer_range))
        self.norm = nn.Parameter(torch.ones(width))

    def project(self, x: Float[Tensor, "b s d"]) -> tuple[Tensor]:
        """Values."""
        x = at_least_float32(x)
        with full_precision(x):
            return (F.linear(x, self.kv.to(x.dtype)),)

    def pool(self, projected: Sequence[Float[Tensor, "b t m oc"]]) -> Float[Tensor, "b t c"]:
        """Means of values."""
        values = slots(projected[0], self.overlap, missing=0.0)
        count = torch.full((values.shape[1], 1), values.shape[2], device=values.device)
        count[:1] = self.ratio
        return values.sum(dim=2) / count

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int, width: int | None = None) -> Cost:
        """`2 o d c` per token; `width` is c, the head size unless given."""
        c = width or site.dims.head_dim
        projection = streams(site) * c * site.dims.hidden_size
        return Cost(
            params=projection + c,
            active_params=projection + c,
            flops=2 * projection * seq_len,
            kernel_flops=2 * projection * (seq_len // site.layer.ratio * site.layer.ratio),
            decode_flops=2 * projection,
        )
