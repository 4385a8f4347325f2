"""The learned router of DeepSeek-V4."""

from components.registry import register
from components.router.balanced import BalancedRouter


@register("learned", source="DeepSeek-V4 inference/model.py; loss-free balancing, arXiv 2408.15664")
class LearnedRouter(BalancedRouter):
    """Top-k of `sqrt(softplus(x Wᵀ))` plus a balancing bias; scores of the chosen are weights, normalised."""
