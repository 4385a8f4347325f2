"""No choice: every query attends to all compressed entries that it may see."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from components.attention.pairs import entry_pairs
from components.cache import Cache, length
from components.registry import register
from components.slots import Aux, EntryMass, Indexer, Position
from components.spec import Cost, NoOptions, Site


@register("dense", source="DeepSeek-V4 report §4.2, dense-attention stage")
class Dense(Indexer):
    """Selects every visible entry, whatever `layer.topk` says."""

    Config = NoOptions

    def __init__(self, config: NoOptions, site: Site) -> None:
        super().__init__()
        self.ratio = site.layer.ratio

    def forward(
        self,
        x: Float[Tensor, "b s d"],
        query_latent: Float[Tensor, "b s q"],
        visible: Int[Tensor, "*b s"],
        position: Position,
        mass: EntryMass,
    ) -> tuple[Bool[Tensor, "b s t"], Aux]:
        return everything(x.shape[0], x.shape[1] // self.ratio, visible), {}

    def step(
        self,
        x: Float[Tensor, "b s d"],
        query_latent: Float[Tensor, "b s q"],
        visible: Int[Tensor, "s"],
        position: Position,
        cache: Cache | None,
    ) -> tuple[Bool[Tensor, "#b s t"], Cache]:
        """All entries that the tokens `x` may see; nothing is kept."""
        after = Cache(length(cache) + x.shape[1])
        return everything(1, after.length // self.ratio, visible), after

    @staticmethod
    def selects(config: NoOptions) -> bool:
        return False

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        return unselected_cost(site, seq_len)


def everything(rows: int, entries: int, visible: Int[Tensor, "*b s"]) -> Bool[Tensor, "b s t"]:
    """The choice of all visible entries among `entries`, for each of b = `rows` sequences."""
    seen = torch.arange(entries, device=visible.device) < visible.unsqueeze(-1)
    return seen.expand(rows, -1, -1)


def unselected_cost(site: Site, seq_len: int) -> Cost:
    """What attention reads beyond the `layer.topk` entries per query that its own cost counts."""
    dims, layer = site.dims, site.layer
    entries = seq_len // layer.ratio
    per_pair = 4 * dims.num_attention_heads * dims.head_dim
    pairs = entry_pairs(seq_len, layer.ratio) - entry_pairs(seq_len, layer.ratio, layer.topk)
    return Cost(flops=per_pair * pairs, decode_flops=per_pair * (entries - min(entries, layer.topk)))
