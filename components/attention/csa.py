"""Compressed sparse attention (CSA) of DeepSeek-V4."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from components.attention.core import entry_mass
from components.attention.pairs import entry_pairs
from components.attention.trunk import UNUSED, Compressed, Trunk, check_ratio, ratio_warnings, trunk_cost
from components.cache import Cache, appended, part
from components.indexer.dense import everything
from components.registry import register
from components.slots import Aux, Compressor, Indexer, OutputProjection, Position, Sink
from components.spec import Cost, NoOptions, Site


@register("csa", source="DeepSeek-V4 report §2.3.1; inference/model.py, compress_ratio 4")
class CompressedSparseAttention(Trunk):
    """A window and, beyond it, the `topk` compressed entries that an indexer chooses for each query.

    Query t may see the entries of all blocks that are complete with token t: `(t + 1) // ratio` of them.
    """

    alarms = (UNUSED,)
    uses = (*Trunk.uses, "compressor", "indexer")

    def __init__(
        self,
        config: NoOptions,
        site: Site,
        *,
        position: Position,
        sink: Sink,
        output_projection: OutputProjection,
        compressor: Compressor,
        indexer: Indexer,
    ) -> None:
        super().__init__(config, site, position=position, sink=sink, output_projection=output_projection)
        self.compressor = compressor
        self.indexer = indexer

    def compress(
        self,
        x: Float[Tensor, "b s d"],
        latent: Float[Tensor, "b s q"],
        queries: Float[Tensor, "b s h c"],
        kv: Float[Tensor, "b s c"],
        real: Bool[Tensor, "b s"] | None = None,
    ) -> tuple[Compressed | None, Aux]:
        visible = torch.arange(1, x.shape[1] + 1, device=x.device) // self.ratio
        if real is not None:
            visible = visible * real
        entries = self.compressor(x, self.position)

        def mass(seen: Bool[Tensor, "#b s t"]) -> Float[Tensor, "b s t"]:
            bias, ratio = self.position.bias, self.ratio
            return entry_mass(queries, kv, self.window, self.sink.logits(), entries, seen, bias, ratio)

        if self.reads_all:
            return (entries, everything(x.shape[0], entries.shape[1], visible)), {}
        chosen, aux = self.indexer(x, latent, visible, self.position, mass)
        return (entries, chosen), aux

    def compress_step(
        self,
        x: Float[Tensor, "b s d"],
        latent: Float[Tensor, "b s q"],
        positions: Int[Tensor, "s"],
        cache: Cache | None,
    ) -> tuple[Compressed | None, Cache]:
        """Keeps every entry, and what the indexer keeps."""
        new, pooling = self.compressor.step(x, self.position, part(cache, "compressor"))
        entries = appended(cache, "entries", new)
        visible = (positions + 1) // self.ratio
        chosen, choosing = self.indexer.step(x, latent, visible, self.position, part(cache, "indexer"))
        parts = {"compressor": pooling, "indexer": choosing}
        return (entries, chosen), Cache(pooling.length, kept={"entries": entries}, parts=parts)

    @classmethod
    def default_layer(cls) -> Mapping[str, Any]:
        return {"overlap": True, "topk": 0}

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        """The trunk's, and `4 h c` per query and chosen entry."""
        ratio, topk, entries = site.layer.ratio, site.layer.topk, seq_len // site.layer.ratio
        pairs = entry_pairs(seq_len, ratio, topk)
        return trunk_cost(site, seq_len, entries, pairs, decode=min(entries, topk))

    @staticmethod
    def check(config: NoOptions, site: Site, seq_len: int) -> None:
        Trunk.check(config, site, seq_len)
        check_ratio(site, seq_len)

    @staticmethod
    def warnings(config: NoOptions, site: Site, seq_len: int) -> list[str]:
        return ratio_warnings(site, seq_len)
