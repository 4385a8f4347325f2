"""The dense SwiGLU feed-forward layer, clamped as in DeepSeek-V4."""

from components.ffn.dense import DenseFFN, dense_cost
from components.registry import register
from components.spec import Cost, Site


@register("swiglu", source="Shazeer 2020, arXiv 2002.05202; clamp of DeepSeek-V4 report §4.2")
class SwiGLU(DenseFFN):
    """One layer for all tokens: `down (SiLU(min(gate x, limit)) * clip(up x, -limit, limit))`."""

    activation = "swiglu"

    @staticmethod
    def cost(config: DenseFFN.Config, site: Site, seq_len: int) -> Cost:
        return dense_cost("swiglu", config, site, seq_len)
