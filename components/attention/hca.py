"""Heavily compressed attention (HCA) of DeepSeek-V4."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from components.attention.pairs import entry_pairs
from components.attention.trunk import UNUSED, Compressed, Trunk, check_ratio, ratio_warnings, trunk_cost
from components.cache import Cache, appended, part
from components.registry import register
from components.slots import Aux, Compressor, OutputProjection, Position, Sink
from components.spec import Cost, NoOptions, Site


@register("hca", source="DeepSeek-V4 report §2.3.2; inference/model.py, compress_ratio 128")
class HeavilyCompressedAttention(Trunk):
    """A window and, beyond it, the compressed entries of all blocks that end with the query or before."""

    alarms = (UNUSED,)
    uses = (*Trunk.uses, "compressor")

    def __init__(
        self,
        config: NoOptions,
        site: Site,
        *,
        position: Position,
        sink: Sink,
        output_projection: OutputProjection,
        compressor: Compressor,
    ) -> None:
        super().__init__(config, site, position=position, sink=sink, output_projection=output_projection)
        self.compressor = compressor

    def compress(
        self,
        x: Float[Tensor, "b s d"],
        latent: Float[Tensor, "b s q"],
        queries: Float[Tensor, "b s h c"],
        kv: Float[Tensor, "b s c"],
        real: Bool[Tensor, "b s"] | None = None,
    ) -> tuple[Compressed | None, Aux]:
        entries = self.compressor(x, self.position)
        visible = torch.arange(1, x.shape[1] + 1, device=x.device) // self.ratio
        seen = torch.arange(entries.shape[1], device=x.device) < visible.unsqueeze(1)
        return (entries, seen.unsqueeze(0)), {}

    def compress_step(
        self,
        x: Float[Tensor, "b s d"],
        latent: Float[Tensor, "b s q"],
        positions: Int[Tensor, "s"],
        cache: Cache | None,
    ) -> tuple[Compressed | None, Cache]:
        """Keeps every entry."""
        new, pooling = self.compressor.step(x, self.position, part(cache, "compressor"))
        entries = appended(cache, "entries", new)
        visible = (positions + 1) // self.ratio
        seen = torch.arange(entries.shape[1], device=x.device) < visible.unsqueeze(1)
        after = Cache(pooling.length, kept={"entries": entries}, parts={"compressor": pooling})
        return (entries, seen.unsqueeze(0)), after

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        """The trunk's, and `4 h c` per query and visible entry."""
        entries = seq_len // site.layer.ratio
        return trunk_cost(site, seq_len, entries, entry_pairs(seq_len, site.layer.ratio), decode=entries)

    @staticmethod
    def check(config: NoOptions, site: Site, seq_len: int) -> None:
        Trunk.check(config, site, seq_len)
        check_ratio(site, seq_len)

    @staticmethod
    def warnings(config: NoOptions, site: Site, seq_len: int) -> list[str]:
        return ratio_warnings(site, seq_len)
