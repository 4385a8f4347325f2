"""What compressors share: blocks of tokens, and the slots that one entry is pooled from."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from components.cache import Cache, length
from components.functional import rms_norm
from components.slots import Compressor, Position
from components.spec import Site


class BlockCompressor(Compressor):
    """Projects each token by itself, pools each entry from the projections of its block, and normalises it.

    With overlap the block before takes part too. Decoding therefore keeps projections of the tokens of an
    unfinished block and, with overlap, of the one before it.
    """

    ratio: int
    overlap: bool
    eps: float
    norm: Tensor

    @abstractmethod
    def project(self, x: Float[Tensor, "b s d"]) -> tuple[Float[Tensor, "b s p"], ...]:
        """What tokens give to entries."""

    @abstractmethod
    def pool(self, projected: Sequence[Float[Tensor, "b t m p"]]) -> Float[Tensor, "b t c"]:
        """One entry for each of t complete blocks of m tokens; the first has no block before it."""

    def forward(self, x: Float[Tensor, "b s d"], position: Position) -> Float[Tensor, "b t c"]:
        """Entries of complete blocks, rotated at the first token of each; tokens after them are left out."""
        count = x.shape[1] // self.ratio
        entries = self._entries(self.project(x[:, : count * self.ratio]), x.dtype)
        return position.rotate(entries, torch.arange(count, device=x.device) * self.ratio)

    def step(
        self, x: Float[Tensor, "b s d"], position: Position, cache: Cache | None
    ) -> tuple[Float[Tensor, "b t c"], Cache]:
        """Entries of the blocks that `x` completes."""
        projected = self.project(x)
        if cache is not None:
            projected = tuple(
                torch.cat(both, dim=1) for both in zip(cache.pending.values(), projected, strict=True)
            )
        before = length(cache)
        total = before + x.shape[1]
        done, count = before // self.ratio, total // self.ratio
        # Projections begin with a block: the unfinished one, or with overlap the one before it, which has its
        # entry already and is pooled only as what the next entry overlaps with.
        first = (total - projected[0].shape[1]) // self.ratio
        last = count if count > done else first
        complete = [z[:, : (last - first) * self.ratio] for z in projected]
        entries = self._entries(complete, x.dtype)[:, done - first :]
        numbers = torch.arange(done, done + entries.shape[1], device=x.device)
        needed = (max(count - self.overlap, 0) - first) * self.ratio
        pending = {str(i): z[:, needed:] for i, z in enumerate(projected)}
        return position.rotate(entries, numbers * self.ratio), Cache(total, pending=pending)

    def _entries(
        self, projected: Iterable[Float[Tensor, "b s p"]], dtype: torch.dtype
    ) -> Float[Tensor, "b t c"]:
        blocks = [z.unflatten(1, (z.shape[1] // self.ratio, self.ratio)) for z in projected]
        return rms_norm(self.pool(blocks).to(dtype), self.norm, self.eps)


def streams(site: Site) -> int:
    """Projections per token: 2 with overlap (one for its own block's entry, one for the next's), else 1."""
    return 2 if site.layer.overlap else 1


def slots(blocks: Float[Tensor, "b t m oc"], overlap: bool, missing: float) -> Float[Tensor, "b t om c"]:
    """What each entry is pooled from: its own block's values, with overlap after the previous block's.

    With overlap, the first half of the channels is what a token gives to the next block's entry and the
    second half what it gives to its own block's. The first entry has no previous block; `missing` stands
    there.
    """
    if not overlap:
        return blocks
    following, own = blocks.chunk(2, dim=-1)
    previous = F.pad(following, (0, 0, 0, 0, 1, 0), value=missing)[:, :-1]
    return torch.cat((previous, own), dim=2)
