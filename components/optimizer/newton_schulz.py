"""Newton-Schulz iteration: a matrix with its singular values brought to about 1, by matrix products alone."""

import torch
from jaxtyping import Float
from torch import Tensor

_FAST = (3.4445, -4.7750, 2.0315)
_EXACT = (2.0, -1.5, 0.5)
STEPS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "hybrid": (_FAST,) * 8 + (_EXACT,) * 2,
    "quintic": (_FAST,) * 5,
}
"""Coefficients (a, b, c) of every step `X <- a X + b (X X^T) X + c (X X^T)^2 X`."""


def orthogonalise(x: Float[Tensor, "k n m"], form: str) -> Float[Tensor, "k n m"]:
    """Each matrix with its singular values brought near 1; zero stays zero. Rows are the shorter side.

    `hybrid` ends in steps that settle at 1, `quintic` stays between 0.7 and 1.2.

    Source: Jordan et al. 2024, "Muon" (quintic); DeepSeek-V4 report §2.4 (hybrid).
    """
    # By the largest entry first: squares of very small ones would vanish, and their norm with them.
    x = x / x.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp_min(1.0)
    for a, b, c in STEPS[form]:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def flops(rows: int, columns: int, form: str) -> int:
    """FLOPs of `orthogonalise` for one matrix with sides n <= m: `4 n^2 m + 2 n^3` per step."""
    n, m = sorted((rows, columns))
    return len(STEPS[form]) * (4 * n * n * m + 2 * n**3)
