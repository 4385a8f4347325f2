"""The dense GEGLU feed-forward layer."""

from components.ffn.dense import DenseFFN, dense_cost
from components.registry import register
from components.spec import Cost, Site


@register("geglu", source="Shazeer 2020, arXiv 2002.05202")
class GEGLU(DenseFFN):
    """`swiglu` with the exact GELU in place of SiLU: `down (GELU(min(gate x, limit)) * clip(up x))`."""

    activation = "geglu"

    @staticmethod
    def cost(config: DenseFFN.Config, site: Site, seq_len: int) -> Cost:
        return dense_cost("geglu", config, site, seq_len)
