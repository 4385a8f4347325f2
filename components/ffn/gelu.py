"""The dense feed-forward layer of GELUs."""

from components.ffn.dense import DenseFFN, dense_cost
from components.registry import register
from components.spec import Cost, Site


@register("gelu", source="Hendrycks & Gimpel 2016, arXiv 1606.08415; GPT-2")
class GELU(DenseFFN):
    """Two matrices: `down GELU(min(up x, limit))`, half as wide again as `swiglu`, so equally large."""

    activation = "gelu"

    @staticmethod
    def cost(config: DenseFFN.Config, site: Site, seq_len: int) -> Cost:
        return dense_cost("gelu", config, site, seq_len)
