"""Sinkhorn-Knopp: the recipe, its order, and the hand-written backward."""

import pytest
import torch
from torch import Tensor

from components.residual.sinkhorn import sinkhorn


def reference(logits: Tensor, iterations: int, eps: float) -> Tensor:
    """The recipe written out for autograd, on [m, j, k]."""
    c = torch.softmax(logits.permute(2, 0, 1), dim=-1) + eps
    c = c / (c.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        c = c / (c.sum(-1, keepdim=True) + eps)
        c = c / (c.sum(-2, keepdim=True) + eps)
    return c.permute(1, 2, 0)


@pytest.mark.parametrize(("n", "iterations", "eps"), [(4, 20, 1e-6), (3, 1, 1e-2), (2, 5, 0.1), (1, 3, 1e-2)])
def test_forward_and_backward_are_exact(n: int, iterations: int, eps: float) -> None:
    logits = torch.randn(n, n, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    logits = (2 * logits).requires_grad_()
    assert torch.allclose(
        sinkhorn(logits, iterations, eps), reference(logits, iterations, eps), atol=1e-14, rtol=0
    )
    assert torch.autograd.gradcheck(lambda x: sinkhorn(x, iterations, eps), logits)


@pytest.mark.parametrize("spread", [0.1, 3.0, 8.0])
def test_single_precision_gradient_is_as_good_as_autograds(spread: float) -> None:
    logits = spread * torch.randn(4, 4, 2048, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(4, 4, 2048, generator=torch.Generator().manual_seed(1))
    exact = logits.double().requires_grad_()
    wanted = torch.autograd.grad(reference(exact, 20, 1e-6), exact, weight.double())[0]
    single = logits.clone().requires_grad_()
    assert (torch.autograd.grad(sinkhorn(single, 20, 1e-6), single, weight)[0] - wanted).abs().max() < 2e-5


def test_trap_24_outputs_sum_to_one_and_inputs_only_nearly() -> None:
    logits = 3 * torch.randn(4, 4, 4096, generator=torch.Generator().manual_seed(0))
    balanced = sinkhorn(logits, 20, 1e-6)
    over_inputs, over_outputs = balanced.sum(0), balanced.sum(1)
    assert (over_inputs - 1).abs().max() < 1e-5
    assert 1e-4 < (over_outputs - 1).abs().max() < 0.2


def test_trap_25_three_iterations_are_not_twenty() -> None:
    logits = 3 * torch.randn(4, 4, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (sinkhorn(logits, 3, 1e-6) - reference(logits, 20, 1e-6)).abs().max() > 1e-2
