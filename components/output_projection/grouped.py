"""DeepSeek-V4's two-step output projection: groups of heads first, then all groups together."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from components.registry import register
from components.slots import OutputProjection
from components.spec import Cost, NoOptions, Site


@register("grouped", source="DeepSeek-V4 report §2.3; inference/model.py")
class Grouped(OutputProjection):
    """Two steps: each group of consecutive heads to `o_lora_rank` channels, then all groups together.

    `y_G = heads_G a_G^T`, `out = concat_G(y_G) b^T`, with g = `o_groups` groups and r = `o_lora_rank`.

    Attributes:
        a: [g*r, h*c/g]; rows G*r ... (G+1)*r - 1 belong to group G.
        b: [d, g*r].
    """

    Config = NoOptions

    def __init__(self, config: NoOptions, site: Site) -> None:
        super().__init__()
        dims = site.dims
        self.groups = dims.o_groups
        self.row_blocks = {"a": dims.o_groups}
        mixed = dims.o_groups * dims.o_lora_rank
        width = dims.num_attention_heads * dims.head_dim // dims.o_groups
        std = dims.initializer_range
        self.a = nn.Parameter(torch.empty(mixed, width).normal_(0.0, std))
        self.b = nn.Parameter(torch.empty(dims.hidden_size, mixed).normal_(0.0, std))

    def forward(self, heads: Float[Tensor, "b s h c"]) -> Float[Tensor, "b s d"]:
        batch, length = heads.shape[:2]
        grouped = heads.reshape(batch * length, self.groups, -1).transpose(0, 1)
        mixed = grouped @ self.a.unflatten(0, (self.groups, -1)).transpose(1, 2)
        return F.linear(mixed.transpose(0, 1).reshape(batch, length, -1), self.b)

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        """`2 (h c r + g r d)` per token."""
        dims = site.dims
        params = dims.o_lora_rank * (
            dims.num_attention_heads * dims.head_dim + dims.o_groups * dims.hidden_size
        )
        return Cost(
            params=params,
            active_params=params,
            flops=2 * params * seq_len,
            kernel_flops=2 * params * seq_len,
            decode_flops=2 * params,
        )

    @staticmethod
    def check(config: NoOptions, site: Site, seq_len: int) -> None:
        dims = site.dims
        if dims.o_lora_rank < 1:
            raise ValueError(f"o_lora_rank={dims.o_lora_rank} must be at least 1")
        if dims.num_attention_heads % dims.o_groups:
            divisors = [
                n for n in range(1, dims.num_attention_heads + 1) if dims.num_attention_heads % n == 0
            ]
            raise ValueError(
                f"o_groups={dims.o_groups} does not divide num_attention_heads={dims.num_attention_heads}. "
                f"Allowed: {', '.join(map(str, divisors))}"
            )

    @staticmethod
    def warnings(config: NoOptions, site: Site, seq_len: int) -> list[str]:
        dims = site.dims
        width = dims.num_attention_heads * dims.head_dim // dims.o_groups
        if dims.o_lora_rank <= width:
            return []
        return [
            f"o_lora_rank={dims.o_lora_rank} is more than the {width} channels of a group of heads, so the "
            "projection is not low-rank and costs more than output_projection=dense"
        ]
