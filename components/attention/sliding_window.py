"""Sliding-window attention as in DeepSeek-V4."""

from components.attention.trunk import Trunk, trunk_cost
from components.registry import register
from components.spec import Cost, NoOptions, Site


@register("sliding_window", source="DeepSeek-V4 report §2.3; inference/model.py, compress_ratio 0")
class SlidingWindow(Trunk):
    """Each query sees the last `sliding_window` tokens, itself included. Cost is linear in the sequence."""

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        """`2 (d q + q h c + d c)` per token and `4 h c` per query-key pair."""
        return trunk_cost(site, seq_len)
