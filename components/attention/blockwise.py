"""What mechanisms that attend to chosen blocks of tokens share."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from components.attention.core import Blocks, attend, in_window
from components.spec import Site


def to_tokens(chosen: Bool[Tensor, "... n"], block: int, length: int) -> Bool[Tensor, "... s"]:
    """Blocks to the tokens in them; tokens after the last block of the mask are not chosen."""
    tokens = chosen.repeat_interleave(block, dim=-1)[..., :length]
    return F.pad(tokens, (0, length - tokens.shape[-1]))


def joined(heads: Float[Tensor, "b s g c"]) -> Float[Tensor, "m s c"]:
    """Heads of keys or values as rows of a batch of m = b g."""
    return heads.transpose(1, 2).flatten(0, 1)


def decoded_tokens(seq_len: int, block: int, topk: int) -> int:
    """Tokens that one token after a context of `seq_len` attends to in `topk` blocks, its own included."""
    return min(topk - 1, seq_len // block) * block + seq_len % block


def check_blocks(site: Site) -> None:
    """Raise `ValueError` where there are no blocks or none may be chosen."""
    if site.layer.ratio < 1:
        raise ValueError(
            f"ratio={site.layer.ratio} must be at least 1: it is the number of tokens in a block"
        )
    if site.layer.topk < 1:
        raise ValueError(f"index_topk={site.layer.topk} must be at least 1: a query's own block counts")


def windowed(
    queries: Float[Tensor, "n s h c"],
    keys: Float[Tensor, "n s c"],
    values: Float[Tensor, "n s c"],
    window: int,
) -> Float[Tensor, "n s h c"]:
    """Attention to the last `window` tokens, computed in the blocks of queries that need the fewest pairs."""
    count, length = keys.shape[:2]
    blocks = Blocks.best(length, window)
    extra = blocks.count * blocks.size - length

    def grouped(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0) * (x.ndim - 2) + (0, extra)).unflatten(1, (blocks.count, blocks.size))

    def reached(x: Tensor) -> Tensor:
        padded = F.pad(grouped(x), (0, 0, 0, 0, blocks.back, 0))
        parts = [padded[:, i : i + blocks.count] for i in range(blocks.back + 1)]
        return torch.cat(parts, dim=2).flatten(0, 1)

    seen = in_window(blocks, window, keys.device).expand(count, -1, -1, -1).flatten(0, 1)
    mixed = attend(grouped(queries).flatten(0, 1), reached(keys), reached(values), seen, None)
    return mixed.view(count, -1, *queries.shape[2:])[:, :length]
