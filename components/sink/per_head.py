"""One learned sink per head."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from components.registry import register
from components.slots import Sink
from components.spec import Cost, NoOptions, Site


@register("per_head", source="gpt-oss, arXiv 2508.10925; DeepSeek-V4 inference/model.py")
class PerHead(Sink):
    """One learned logit per head that takes part in the softmax and carries no value.

    Attributes:
        sinks: [h], zeros at first.
    """

    Config = NoOptions

    def __init__(self, config: NoOptions, site: Site) -> None:
        super().__init__()
        self.sinks = nn.Parameter(torch.zeros(site.dims.num_attention_heads))

    def logits(self) -> Float[Tensor, "h"]:
        return self.sinks

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        """Parameters only."""
        heads = site.dims.num_attention_heads
        return Cost(params=heads, active_params=heads)
