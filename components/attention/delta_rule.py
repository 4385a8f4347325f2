"""The gated delta rule, in chunks."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from components.precision import at_least_float32


def gated_delta_rule(
    queries: Float[Tensor, "b s h c"],
    keys: Float[Tensor, "b s h c"],
    values: Float[Tensor, "b s h v"],
    beta: Float[Tensor, "b s h"],
    log_decay: Float[Tensor, "b s h"],
    chunk: int,
    state: Float[Tensor, "b h c v"] | None = None,
    last: bool = False,
) -> tuple[Float[Tensor, "b s h v"], Float[Tensor, "b h c v"] | None]:
    """`S_t = a_t S_{t-1} + b_t k_t (v_t - a_t S_{t-1}^T k_t)^T`, `o_t = S_t^T q_t`; o and the last S.

    Within a chunk, with G the running sum of log decays and S the state before it, the corrections
    `delta_t = b_t (v_t - a_t S_{t-1}^T k_t)` solve one unit lower triangular system:

        delta_t + sum_{j<t} b_t e^(G_t - G_j) (k_t . k_j) delta_j = b_t (v_t - e^(G_t) S^T k_t)
        o_t = e^(G_t) S^T q_t + sum_{j<=t} e^(G_t - G_j) (q_t . k_j) delta_j
        S' = e^(G_end) S + sum_j e^(G_end - G_j) k_j delta_j^T

    Every chunk size gives the same result. Computed in at least 32 bits.

    Args:
        state: S before the first token; None is zero.
        last: whether S after the last token is wanted; otherwise it is None, and nothing is spent on it.
    """
    length = keys.shape[1]
    size = min(chunk, length)
    count = -(-length // size)
    with torch.autocast(keys.device.type, enabled=False):
        # A padded token has b = 0 and no decay, so it changes nothing.
        q, k, v, b, g = (
            F.pad(at_least_float32(x).transpose(1, 2), (0, 0) * (x.ndim - 3) + (0, count * size - length))
            .unflatten(2, (count, size))
            .contiguous()
            for x in (queries, keys, values, beta, log_decay)
        )
        g = g.cumsum(-1)
        lower = torch.ones(size, size, dtype=torch.bool, device=keys.device).tril()
        decay = (g.unsqueeze(-1) - g.unsqueeze(-2)).masked_fill(~lower, -torch.inf).exp()
        system = (b.unsqueeze(-1) * decay * (k @ k.transpose(-1, -2))).tril(-1)
        reading = decay * (q @ k.transpose(-1, -2))
        targets = b.unsqueeze(-1) * v
        total = g.exp().unsqueeze(-1)
        outputs = []
        for i in range(count):
            right = targets[:, :, i]
            if state is not None:
                right = right - b[:, :, i].unsqueeze(-1) * total[:, :, i] * (k[:, :, i] @ state)
            delta = torch.linalg.solve_triangular(system[:, :, i], right, upper=False, unitriangular=True)
            out = reading[:, :, i] @ delta
            if state is not None:
                out = out + total[:, :, i] * (q[:, :, i] @ state)
            outputs.append(out)
            if last or i < count - 1:
                left = decay[:, :, i, -1].unsqueeze(-1) * k[:, :, i]
                update = left.transpose(-1, -2) @ delta
                state = update if state is None else total[:, :, i, -1:] * state + update
        mixed = torch.cat(outputs, dim=2)[:, :, :length].transpose(1, 2).to(values.dtype)
        return mixed, state if last else None


def chunk_flops(seq_len: int, width: int, chunk: int) -> int:
    """FLOPs of one head: triangles of pairs within chunks, and the state read twice and written once.

    A pair of a token and one before it costs `2 c` for each of: products of keys, the system's solution,
    products with the query, the output; a token with itself only the last two. Nothing is read before
    the first chunk's end and nothing written after the last one's beginning.
    """
    size = min(chunk, seq_len)
    full, rest = divmod(seq_len, size)
    last = rest or size
    within = 4 * width * (full * size**2 + rest**2)
    return within + 2 * width**2 * (2 * (seq_len - size) + seq_len - last)


def chunk_kernel_flops(seq_len: int, width: int, chunk: int) -> int:
    """FLOPs of one head's matrix products, squares and filled-up chunks whole; solving is not among them."""
    size = min(chunk, seq_len)
    count = -(-seq_len // size)
    return count * 6 * size**2 * width + (count - 1) * 6 * size * width**2
