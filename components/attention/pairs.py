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
