"""What compressors share: blocks of tokens, and the slots that one entry is pooled from."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from components.spec import Site


def streams(site: Site) -> int:
    """Projections per token: 2 with overlap (one for its own block's entry, one for the next's), else 1."""
    return 2 if site.layer.overlap else 1


def complete(x: Float[Tensor, "b s d"], ratio: int) -> Float[Tensor, "b t m d"]:
    """Complete blocks of m = `ratio` tokens; the tokens after the last one are left out."""
    count = x.shape[1] // ratio
    return x[:, : count * ratio].unflatten(1, (count, ratio))


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


def entry_positions(count: int, ratio: int, device: torch.device) -> Tensor:
    """Where entries stand: the first token of their own block."""
    return torch.arange(count, device=device) * ratio
