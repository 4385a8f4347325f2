"""The best possible choice: what an indexer would do that knew attention beforehand."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from components.attention.core import Blocks
from components.attention.pairs import entry_pairs, window_pairs
from components.indexer.dense import everything
from components.indexer.lightning import highest
from components.indexer.teaching import CHOICE, choice_quality
from components.indexer.topk import check_topk, topk_warnings
from components.registry import register
from components.slots import Aux, EntryMass, Indexer, Position
from components.spec import Cost, NoOptions, Site


@register(
    "oracle",
    source="top-k of true attention mass; bound for indexer=lightning, DeepSeek-V3.2 arXiv 2512.02556",
)
class Oracle(Indexer):
    """Chooses the `layer.topk` visible entries that attention to all of them would give most to.

    The mass of an entry is its share of the layer's real softmax over window, entries and sink, summed over
    heads. It takes the scores of attention to everything, so nothing is saved: a bound for what any indexer
    can reach, not a way to compute. Of equal masses the earliest entry goes first. It has no parameters,
    passes no gradient and cannot decode. Watched, it reports the share of attention that it keeps.
    """

    Config = NoOptions
    diagnostics = CHOICE

    def __init__(self, config: NoOptions, site: Site) -> None:
        super().__init__()
        self.ratio, self.topk = site.layer.ratio, site.layer.topk

    @torch.no_grad()
    def forward(
        self,
        x: Float[Tensor, "b s d"],
        query_latent: Float[Tensor, "b s q"],
        visible: Int[Tensor, "*b s"],
        position: Position,
        mass: EntryMass,
    ) -> tuple[Bool[Tensor, "b s t"], Aux]:
        count = x.shape[1] // self.ratio
        seen = everything(x.shape[0], count, visible)
        if count <= self.topk:
            return seen, {}
        given = mass(seen)
        chosen = highest(given.masked_fill(~seen, -torch.inf), self.topk) & seen
        if not self.watched:
            return chosen, {}
        return chosen, choice_quality(given, chosen, visible, self.topk)

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        """`2 h c` (frozen) per query and token of its window or visible entry: attention's own scores."""
        dims, layer = site.dims, site.layer
        entries, window = seq_len // layer.ratio, dims.sliding_window
        per_pair = 2 * dims.num_attention_heads * dims.head_dim
        blocks = Blocks.best(seq_len, window)
        kernel_pairs = blocks.pairs + blocks.count * blocks.size * entries
        runs = entries > layer.topk
        return Cost(
            frozen_flops=runs
            * per_pair
            * (window_pairs(seq_len, window) + entry_pairs(seq_len, layer.ratio)),
            kernel_flops=runs * per_pair * kernel_pairs,
            decode_flops=runs * per_pair * (min(window, seq_len) + entries),
        )

    @staticmethod
    def check(config: NoOptions, site: Site, seq_len: int) -> None:
        check_topk(site)

    @staticmethod
    def warnings(config: NoOptions, site: Site, seq_len: int) -> list[str]:
        return topk_warnings(site, seq_len)
