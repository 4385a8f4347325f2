"""Compression by a strided convolution, with weights that do not look at the tokens."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from components.compressor.blocks import BlockCompressor, slots, streams
from components.precision import at_least_float32, full_precision
from components.registry import register
from components.spec import Cost, NoOptions, Site


@register(
    "strided_conv", source="Compressive Transformer, arXiv 1911.05507 §3.1; ablation of DeepSeek-V4's gates"
)
class StridedConv(BlockCompressor):
    """Each entry is a weighted sum of its block's projections: `gated` with weights by place instead of content.

    A depthwise convolution over the projections `C = x kv^T`, as long as a block and with a block's stride,
    or twice as long with overlap: channel by channel, `Σ_j kernel[j] C[i m + j]`. Then RMS norm and rotation
    as in `gated`. It starts as `mean_pool`, from which only the learned kernel tells it. (The paper's
    convolution is dense: it has m times the parameters of the projection.)

    Attributes:
        kv: [o*c, d], o = 2 with overlap, else 1.
        kernel: [m, o*c], 1 / (o m) at first.
        norm: [c].
    """

    Config = NoOptions

    def __init__(self, config: NoOptions, site: Site, *, width: int) -> None:
        super().__init__()
        dims, layer = site.dims, site.layer
        self.ratio, self.overlap, self.eps = layer.ratio, layer.overlap, dims.rms_norm_eps
        rows = streams(site) * width
        self.kv = nn.Parameter(torch.empty(rows, dims.hidden_size).normal_(0.0, dims.initializer_range))
        self.kernel = nn.Parameter(torch.full((layer.ratio, rows), 1 / (streams(site) * layer.ratio)))
        self.row_blocks = {"kernel": 0}
        self.norm = nn.Parameter(torch.ones(width))

    def project(self, x: Float[Tensor, "b s d"]) -> tuple[Tensor]:
        """Values."""
        x = at_least_float32(x)
        with full_precision(x):
            return (F.linear(x, self.kv.to(x.dtype)),)

    def pool(self, projected: Sequence[Float[Tensor, "b t m oc"]]) -> Float[Tensor, "b t c"]:
        """Sums of values weighted by their place in the block; the block before the first counts nothing."""
        return slots(projected[0] * self.kernel, self.overlap, missing=0.0).sum(dim=2)

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int, width: int | None = None) -> Cost:
        """`2 o d c` per token; `width` is c, the head size unless given. The sums are elementwise."""
        c = width or site.dims.head_dim
        rows = streams(site) * c
        projection = rows * site.dims.hidden_size
        params = projection + site.layer.ratio * rows + c
        return Cost(
            params=params,
            active_params=params,
            flops=2 * projection * seq_len,
            kernel_flops=2 * projection * (seq_len // site.layer.ratio * site.layer.ratio),
            decode_flops=2 * projection,
        )
