"""Exact numbers of query-key pairs in one sequence, by what a query may see."""


def causal_pairs(seq_len: int) -> int:
    """Each query sees all tokens up to itself."""
    return seq_len * (seq_len + 1) // 2


def window_pairs(seq_len: int, window: int) -> int:
    """Each query sees the last `window` tokens, itself included."""
    ramp = min(seq_len, window)
    return causal_pairs(ramp) + (seq_len - ramp) * window


def entry_pairs(seq_len: int, ratio: int, topk: int | None = None) -> int:
    """Each query sees the entries of all blocks of `ratio` tokens that have ended, at most `topk`."""
    limit = seq_len // ratio if topk is None else min(topk, seq_len // ratio)
    # Entry number e of the limit (from 1) is there for every query from position e * ratio - 1 on.
    return limit * (seq_len + 1) - ratio * limit * (limit + 1) // 2


def block_pairs(seq_len: int, block: int, topk: int) -> int:
    """Each query sees its own block of `block` tokens up to itself, and `topk - 1` earlier ones or fewer."""
    own = seq_len // block * causal_pairs(block) + causal_pairs(seq_len % block)
    return own + block * earlier_blocks(seq_len, block, topk - 1)


def earlier_blocks(seq_len: int, block: int, limit: int | None = None) -> int:
    """Query-block pairs of each query and the blocks before its own, at most `limit` of them."""
    # What has ended one token before a query is what lies before its block.
    return entry_pairs(seq_len - 1, block, limit)


def strided_pairs(seq_len: int, size: int, stride: int) -> int:
    """Each query sees the entries of all runs of `size` tokens, one run every `stride`, that have ended."""
    if seq_len < size:
        return 0
    return seq_len - size + 1 + entry_pairs(seq_len - size, stride)
