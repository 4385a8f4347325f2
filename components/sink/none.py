"""No sink."""

from components.registry import register
from components.slots import Sink
from components.spec import Cost, NoOptions, Site


@register("none", source="Vaswani et al. 2017, arXiv 1706.03762")
class NoSink(Sink):
    """Plain softmax: attention mass always adds up to one."""

    Config = NoOptions

    def __init__(self, config: NoOptions, site: Site) -> None:
        super().__init__()

    def logits(self) -> None:
        return None

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        """Nothing."""
        return Cost()
