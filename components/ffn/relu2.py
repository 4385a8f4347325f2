"""The dense feed-forward layer of squared ReLUs."""

from components.ffn.dense import DenseFFN, dense_cost
from components.registry import register
from components.spec import Cost, Site


@register("relu2", source="Primer, arXiv 2109.08668; ReLU² Wins, arXiv 2402.03804")
class ReLU2(DenseFFN):
    """Two matrices: `down max(0, min(up x, limit))²`, half as wide again as `swiglu`, so equally large."""

    activation = "relu2"

    @staticmethod
    def cost(config: DenseFFN.Config, site: Site, seq_len: int) -> Cost:
        return dense_cost("relu2", config, site, seq_len)
