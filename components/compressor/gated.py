"""DeepSeek-V4's compressor: gated pooling of blocks of tokens."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from components import native
from components.compressor.blocks import BlockCompressor, slots, streams
from components.native import indexer as fused
from components.precision import at_least_float32, full_precision
from components.registry import register
from components.spec import Cost, NoOptions, Site


@register("gated", source="DeepSeek-V4 report §2.3.1-2.3.2; inference/model.py")
class Gated(BlockCompressor):
    """Each channel of an entry is a softmax-weighted mean over the tokens of its block.

    With m = `layer.ratio`: values `C = x kv^T` and gates `Z = x gate^T + ape[t mod m]`. Entry i pools `C`
    with `softmax(Z)`, for every channel by itself, over the m tokens of block i. With `layer.overlap` there
    are two sets of `C` and `Z`, and entry i pools 2m values at once: block i's own, and what block i-1 gives
    to the next. Then RMS norm with a weight, and rotation at position i*m. Tokens after the last complete
    block have no entry. All of it is in at least 32 bits.

    Attributes:
        kv: [o*c, d], o = 2 with overlap, else 1.
        gate: [o*c, d].
        ape: [m, o*c], zeros at first.
        norm: [c].
    """

    Config = NoOptions

    def __init__(self, config: NoOptions, site: Site, *, width: int) -> None:
        super().__init__()
        dims, layer = site.dims, site.layer
        self.ratio, self.overlap, self.eps = layer.ratio, layer.overlap, dims.rms_norm_eps
        rows = streams(site) * width
        self.kv = nn.Parameter(torch.empty(rows, dims.hidden_size).normal_(0.0, dims.initializer_range))
        self.gate = nn.Parameter(torch.empty(rows, dims.hidden_size).normal_(0.0, dims.initializer_range))
        self.ape = nn.Parameter(torch.zeros(layer.ratio, rows))
        self.row_blocks = {"ape": 0}
        self.wide = ("ape",)
        self.norm = nn.Parameter(torch.ones(width))

    def project(self, x: Float[Tensor, "b s d"]) -> tuple[Tensor, Tensor]:
        """Values and gates."""
        x = at_least_float32(x)
        with full_precision(x):
            return F.linear(x, self.kv.to(x.dtype)), F.linear(x, self.gate.to(x.dtype))

    def pool(self, projected: Sequence[Float[Tensor, "b t m oc"]]) -> Float[Tensor, "b t c"]:
        """Softmax-weighted means of values."""
        values, gates = projected
        if native.takes(values, gates, self.ape):
            return fused.gated_pool(values, gates, self.ape, self.overlap)
        weights = slots(gates + self.ape, self.overlap, missing=-torch.inf).softmax(dim=2)
        return (weights * slots(values, self.overlap, missing=0.0)).sum(dim=2)

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int, width: int | None = None) -> Cost:
        """`4 o d c` per token; `width` is c, the head size unless given. Pooling is elementwise."""
        layer = site.layer
        c = width or site.dims.head_dim
        projections = 2 * streams(site) * c * site.dims.hidden_size
        params = projections + layer.ratio * streams(site) * c + c
        return Cost(
            params=params,
            active_params=params,
            flops=2 * projections * seq_len,
            kernel_flops=2 * projections * (seq_len // layer.ratio * layer.ratio),
            decode_flops=2 * projections,
        )
