"""Routers that DeepSeek-V4's is compared with: choices, weights and losses, written out token by token."""

import itertools
import math
from typing import Any

import pytest
import torch
from test_residual import randomise, site
from test_routing import learned, moe, tokens
from torch import Tensor

from components.router.expert_choice import ExpertChoiceRouter
from components.router.hash import HashRouter, make_table
from components.router.sigmoid import SigmoidRouter
from components.router.softmax_aux import SoftmaxRouter
from components.spec import NoOptions

X = tokens(30, seed=4).view(3, 10, 6)
IDS = (torch.arange(30) % 31).view(3, 10)
E, K, SCALE = 4, 2, 1.5


def softmax_router(**options: Any) -> Any:
    return randomise(SoftmaxRouter(SoftmaxRouter.Config(**options), site()))


def softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in logits)
    return [math.exp(v) / total for v in logits]


def best(scores: list[float], k: int = K) -> list[int]:
    return sorted(range(len(scores)), key=lambda e: -scores[e])[:k]


def loss_of(group: list[list[float]], chosen: list[list[int]], alpha: float) -> float:
    """α Σ_e f_e P_e of tokens' scores and choices, by the definition."""
    total = 0.0
    for e in range(E):
        frequency = E / (K * len(group)) * sum(e in choice for choice in chosen)
        total += frequency * sum(scores[e] / sum(scores) for scores in group) / len(group)
    return alpha * total


def scores_of(router: Any, score: Any) -> list[list[list[float]]]:
    """By sequence, token and expert."""
    with torch.no_grad():
        return [[score((router.weight @ x).tolist()) for x in sequence] for sequence in X]


def test_sigmoid_routes_like_v3() -> None:
    router = randomise(SigmoidRouter(SigmoidRouter.Config(), site()))
    router.e_score_correction_bias.copy_(torch.tensor([0.3, -0.2, 0.0, 0.1]))
    bias = router.e_score_correction_bias.tolist()
    weights, chosen, _ = router(X, IDS)
    scores = scores_of(router, lambda logits: [1 / (1 + math.exp(-v)) for v in logits])
    for t, token in enumerate(list(itertools.chain(*scores))):
        wanted = best([s + b for s, b in zip(token, bias, strict=True)])
        assert set(chosen[t].tolist()) == set(wanted)
        for weight, e in zip(weights[t].tolist(), chosen[t].tolist(), strict=True):
            assert weight == pytest.approx(SCALE * token[e] / sum(token[i] for i in wanted))


@pytest.mark.parametrize("make", [SigmoidRouter, type(learned())])
def test_balance_loss_is_the_mean_over_sequences_of_unbiased_scores(make: Any) -> None:
    router = randomise(make(make.Config(balance_loss_alpha=0.5), site()))
    router.e_score_correction_bias.copy_(torch.tensor([0.3, -0.2, 0.0, 0.1]))
    _, chosen, aux = router(X, IDS)

    def score(logits: list[float]) -> list[float]:
        if make is SigmoidRouter:
            return [1 / (1 + math.exp(-v)) for v in logits]
        return [math.sqrt(math.log1p(math.exp(v))) for v in logits]

    picks = chosen.view(3, 10, K).tolist()
    losses = [loss_of(s, c, 0.5) for s, c in zip(scores_of(router, score), picks, strict=True)]
    assert aux["loss/balance"].item() == pytest.approx(sum(losses) / 3)
    aux["loss/balance"].backward()
    assert router.weight.grad.abs().min() > 0
    assert "loss/balance" not in learned(balance_loss_alpha=0.0)(X, IDS)[2]


@pytest.mark.parametrize("seq_aux", [False, True])
@pytest.mark.parametrize("norm_topk_prob", [False, True])
def test_softmax_routes_like_switch_and_v2(seq_aux: bool, norm_topk_prob: bool) -> None:
    router = softmax_router(balance_loss_alpha=0.5, seq_aux=seq_aux, norm_topk_prob=norm_topk_prob)
    weights, chosen, aux = router(X, IDS)
    scores = scores_of(router, softmax)
    flat = list(itertools.chain(*scores))
    for t, token in enumerate(flat):
        assert set(chosen[t].tolist()) == set(best(token))
        norm = sum(token[e] for e in best(token)) if norm_topk_prob else 1.0
        for weight, e in zip(weights[t].tolist(), chosen[t].tolist(), strict=True):
            assert weight == pytest.approx(SCALE * token[e] / norm)
    choices = [[best(token) for token in sequence] for sequence in scores]
    batch = loss_of(flat, list(itertools.chain(*choices)), 0.5)
    sequences = [loss_of(s, c, 0.5) for s, c in zip(scores, choices, strict=True)]
    assert aux["loss/balance"].item() == pytest.approx(sum(sequences) / 3 if seq_aux else batch)
    assert sum(sequences) / 3 != pytest.approx(batch, rel=1e-3)


def test_perfect_balance_costs_alpha_and_the_loss_leads_there() -> None:
    router = softmax_router(balance_loss_alpha=1.0)
    x = (tokens(512) + 1).view(4, 128, 6)
    ids = torch.zeros(4, 128, dtype=torch.int64)
    optimizer = torch.optim.SGD(router.parameters(), lr=0.3)
    before = router(x, ids)[2]
    for _ in range(300):
        optimizer.zero_grad()
        router(x, ids)[2]["loss/balance"].backward()
        optimizer.step()
    after = router(x, ids)[2]
    assert after["diag/max_vio"] < 0.3 * before["diag/max_vio"]
    assert after["loss/balance"].item() == pytest.approx(1.0, abs=0.05)
    assert before["loss/balance"] > 1.1
    assert "loss/balance" not in softmax_router(balance_loss_alpha=0.0)(x, ids)[2]


@pytest.mark.parametrize("length", [10, 9, 7, 1])
def test_experts_take_their_best_tokens(length: int) -> None:
    router = randomise(ExpertChoiceRouter(NoOptions(), site(n_routed_experts=3)))
    x = X[:, :length]
    weights, chosen, aux = router(x, IDS[:, :length])
    assert weights.shape == chosen.shape == (3 * length, 3)
    scores = torch.einsum("bsd,ed->bse", x, router.weight).softmax(-1)
    places = [length * K // 3 + (e < length * K % 3) for e in range(3)]
    assert sum(places) == length * K
    none = 0
    for b in range(3):
        taken = [set(best(scores[b, :, e].tolist(), places[e])) for e in range(3)]
        for t in range(length):
            row = b * length + t
            given = {e: w for e, w in zip(chosen[row].tolist(), weights[row].tolist(), strict=True) if e < 3}
            assert set(given) == {e for e in range(3) if t in taken[e]}
            assert given == pytest.approx({e: SCALE * scores[b, t, e].item() for e in given})
            none += not given
    assert aux["diag/unrouted"].item() == pytest.approx(none / (3 * length))


def test_a_mixture_skips_the_places_without_an_expert() -> None:
    layer = moe(randomise(ExpertChoiceRouter(NoOptions(), site())))
    y, _ = layer(X, IDS)
    weights, chosen, _ = layer.router(X, IDS)
    assert (chosen == E).any()
    for t, u in enumerate(X.flatten(0, 1)):
        wanted = layer.shared(u)
        for weight, e in zip(weights[t], chosen[t].tolist(), strict=True):
            if e < E:
                gate, up = (layer.gate_up[e] @ u).clamp(max=10).chunk(2)
                wanted = wanted + weight * (layer.down[e] @ (gate / (1 + torch.exp(-gate)) * up.clamp(-10)))
        torch.testing.assert_close(y.flatten(0, 1)[t], wanted)


def load_of(table: Tensor, counts: Tensor, experts: int) -> Tensor:
    return torch.zeros(experts, dtype=counts.dtype).index_add(
        0, table.flatten(), counts.repeat_interleave(table.shape[1])
    )


def test_tables_balanced_by_frequency_are_balanced_where_others_are_not() -> None:
    counts = (1_000_000 / torch.arange(1, 2001).double()).long()  # Zipf
    counts = counts[torch.randperm(2000, generator=torch.Generator().manual_seed(0))]
    config, shape = HashRouter.Config(kind="frequency_balanced"), (2000, 2)
    table = make_table(config, shape, 8, 0, counts)
    assert all(len(set(row)) == 2 for row in table.tolist())
    mean = 2 * counts.sum().item() / 8
    assert load_of(table, counts, 8).max() < 1.001 * mean
    other = make_table(HashRouter.Config(kind="round_robin"), shape, 8, 0)
    assert load_of(other, counts, 8).max() > 1.05 * mean
    assert torch.equal(table, make_table(config, shape, 8, 0, counts))
    assert not torch.equal(table, make_table(config, shape, 8, 1, counts))
    # Layers differ in more than the names of their experts: other tokens share one.
    first, second = (
        make_table(config, shape, 8, layer, counts).sort(dim=1).values.unique(dim=0, return_inverse=True)[1]
        for layer in (0, 1)
    )
    assert not torch.equal(first[:, None] == first, second[:, None] == second)


def test_only_tables_that_depend_on_counts_ask_for_them() -> None:
    asked = []

    def counts() -> Tensor:
        asked.append(1)
        return torch.arange(31) ** 3

    for kind in ("random", "round_robin", "frequency_balanced"):
        router = HashRouter(HashRouter.Config(kind=kind), site())
        before = router.tid2eid.clone()
        router.prepare(counts)
        assert torch.equal(router.tid2eid, before) is (kind != "frequency_balanced")
    assert asked == [1]
    unprepared = HashRouter(HashRouter.Config(kind="frequency_balanced"), site())
    load = torch.bincount(unprepared.tid2eid.flatten())
    assert load.max() - load.min() <= 1


def test_warnings_and_bad_options() -> None:
    text = ExpertChoiceRouter.warnings(NoOptions(), site(), 8)[0]
    assert "not causal" in text
    config = SoftmaxRouter.Config(norm_topk_prob=True)
    assert "constant" in SoftmaxRouter.warnings(config, site(num_experts_per_tok=1), 8)[0]
    with pytest.raises(ValueError, match=r"balance_loss_alpha=-1\.0 must not be negative"):
        SigmoidRouter.Config(balance_loss_alpha=-1.0)
    with pytest.raises(ValueError, match=r"balance_loss_alpha=-1\.0 must not be negative"):
        SoftmaxRouter.Config(balance_loss_alpha=-1.0)
