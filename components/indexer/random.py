"""A choice without reason: what is left of sparse attention when its indexer knows nothing."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from components.cache import Cache, length
from components.indexer.dense import everything
from components.indexer.lightning import highest
from components.indexer.teaching import CHOICE, choice_quality
from components.indexer.topk import check_topk, topk_warnings
from components.registry import register
from components.slots import Aux, EntryMass, Indexer, Position
from components.spec import Cost, Site


@register("random", source="random blocks, BigBird, arXiv 2007.14062; control for indexer=lightning")
class Random(Indexer):
    """Chooses `layer.topk` of the visible entries at random, each as likely as any other.

    The choice is a function of `seed`, layer, query position and entry alone: the same for all sequences
    and all steps of training, and for a query the same however the sequence goes on. It costs nothing.
    Watched, it reports the share of attention that it keeps, as `lightning` does.
    """

    diagnostics = CHOICE

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `indexer/random`."""

        seed: int = 0
        """Another seed is another choice."""

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__()
        self.seed, self.layer = config.seed, site.layer.index
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
        chosen = self._choose(seen, torch.arange(x.shape[1], device=x.device))
        if not self.watched or count <= self.topk:
            return chosen, {}
        return chosen, choice_quality(mass(seen), chosen, visible, self.topk)

    @torch.no_grad()
    def step(
        self,
        x: Float[Tensor, "b s d"],
        query_latent: Float[Tensor, "b s q"],
        visible: Int[Tensor, "s"],
        position: Position,
        cache: Cache | None,
    ) -> tuple[Bool[Tensor, "#b s t"], Cache]:
        before, after = length(cache), length(cache) + x.shape[1]
        seen = everything(1, after // self.ratio, visible)
        return self._choose(seen, torch.arange(before, after, device=x.device)), Cache(after)

    def _choose(self, seen: Bool[Tensor, "b s t"], positions: Int[Tensor, "s"]) -> Bool[Tensor, "b s t"]:
        count = seen.shape[-1]
        if count <= self.topk:
            return seen
        start = scramble(torch.tensor(self.seed, device=seen.device)) + self.layer
        rows = scramble(scramble(start) + positions).unsqueeze(1)
        # 24 bits, because that many fit into a float32.
        scores = (scramble(rows + torch.arange(count, device=seen.device)) >> 8).float()
        scores = scores.expand_as(seen).masked_fill(~seen, -torch.inf)
        return highest(scores, self.topk) & seen

    @staticmethod
    def cost(config: Config, site: Site, seq_len: int) -> Cost:
        """Nothing."""
        return Cost()

    @staticmethod
    def check(config: Config, site: Site, seq_len: int) -> None:
        check_topk(site)

    @staticmethod
    def warnings(config: Config, site: Site, seq_len: int) -> list[str]:
        return topk_warnings(site, seq_len)


def scramble(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """A number of 32 bits for each integer, such that neighbours have nothing in common.

    Multiplications and shifts (a "xorshift-multiply" finalizer); the same on every device and version of
    PyTorch, unlike its generators.
    """
    x = x & 0xFFFFFFFF
    for factor in (0x21F0AAAD, 0x735A2D97):
        x = ((x ^ (x >> 16)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 15)
