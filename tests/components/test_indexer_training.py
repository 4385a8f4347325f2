"""What the lightning indexer learns from, derived once more; who learns from which loss; what it costs."""

import math
from typing import cast

import pytest
import torch
from attention_sites import DIMS, inputs, make_attention, make_part, make_site, randomise, total_cost
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from variants import make_variant

from ablate.model import LanguageModel
from ablate.schema import Slot
from components import native, registry
from components.attention.core import Blocks, entry_mass
from components.attention.csa import CompressedSparseAttention
from components.indexer.lightning import Lightning
from components.indexer.teaching import choice_quality, divergence
from components.slots import Position
from components.spec import NoOptions
from components.watching import watching

LENGTH, RATIO, TOPK, WINDOW, HEADS, WIDTH = 41, 4, 3, 5, 4, 12
STAGES = ("none", "dense", "sparse")


def make_layer(stage: str, weight: float = 0.5, sink: str = "per_head") -> CompressedSparseAttention:
    """CSA in double precision with random weights and an indexer in one of its stages."""
    site = make_site("csa")
    cls = registry.get("attention", "csa").cls
    parts = {
        slot: make_part(
            slot,
            site,
            sink if slot == "sink" else None,
            **({"train": stage, "loss_weight": weight} if slot == "indexer" else {}),
        )
        for slot in cls.uses
    }
    layer = cast(CompressedSparseAttention, cls(NoOptions(), site, **parts).double())
    randomise(layer)
    return layer


def normed(x: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def by_definition(
    layer: CompressedSparseAttention, x: Tensor, stage: str
) -> tuple[Tensor, Tensor, float, float]:
    """Mean divergence over queries with candidates, and over those that see more than the top-k: its mean share,
    the part of the best that is in it, and where that is between chance and all.

    One query, head and entry at a time.
    """
    position = cast(Position, layer.position)
    indexer = cast(Lightning, layer.indexer)
    positions = torch.arange(x.shape[1])
    latent = normed(x @ layer.q_a.T, layer.q_a_norm)
    queries = position.rotate(normed((latent @ layer.q_b.T).unflatten(-1, (HEADS, WIDTH))), positions)
    keys = position.rotate(normed(x @ layer.kv.T, layer.kv_norm), positions)
    entries = layer.compressor(x, position)
    index_keys = indexer.compressor(x, position)
    index_queries = position.rotate((latent @ indexer.q_b.T).unflatten(-1, (3, 8)), positions)
    index_weights = x @ indexer.weights.T / math.sqrt(8) / math.sqrt(3)
    sinks = layer.sink.logits()
    losses, shares, parts, skills = [], [], [], []
    for b in range(len(x)):
        for t in range(x.shape[1]):
            visible = list(range((t + 1) // RATIO))
            if not visible:
                continue
            products = {s: index_queries[b, t] @ index_keys[b, s] for s in visible}
            scores = {s: index_weights[b, t] @ torch.relu(products[s]) for s in visible}
            best = sorted(visible, key=lambda s: (-float(scores[s].detach()), s))[:TOPK]

            def attention(attended: list[int], b: int = b, t: int = t) -> Tensor:
                """Of each attended entry, summed over heads."""
                total = torch.zeros(len(attended), dtype=torch.float64)
                for h in range(HEADS):
                    window = keys[b, max(0, t - WINDOW + 1) : t + 1]
                    joint = torch.cat([window, entries[b, attended]]) @ queries[b, t, h] / math.sqrt(WIDTH)
                    rest = 0.0 if sinks is None else sinks[h].exp()
                    total = total + joint.exp()[len(window) :] / (joint.exp().sum() + rest)
                return total

            candidates = visible if stage == "dense" else best
            teacher = attention(candidates)
            p = (teacher / teacher.sum()).detach()
            q = torch.stack([scores[s] for s in candidates]).softmax(0)
            losses.append((p * (p / q).log()).sum())
            if len(visible) > TOPK:
                full = attention(visible)
                shares.append(full[best].sum() / full.sum())
                most = sorted(visible, key=lambda s: -float(full[s].detach()))[:TOPK]
                parts.append(len({*best} & {*most}) / TOPK)
                chance = TOPK / len(visible)
                skills.append((parts[-1] - chance) / (1 - chance))
    means = sum(parts) / len(parts), sum(skills) / len(skills)
    return torch.stack(losses).mean(), torch.stack(shares).mean(), *means


@pytest.mark.parametrize("sink", ["per_head", "none"])
@pytest.mark.parametrize("stage", ["dense", "sparse"])
def test_loss_its_gradient_and_recall_follow_the_definition(stage: str, sink: str) -> None:
    layer = make_layer(stage, weight=0.5, sink=sink)
    x = inputs(make_site("csa"), LENGTH)
    loss, share, recall, skill = by_definition(layer, x, stage)
    with watching(layer):
        aux = layer(x)[1]
    torch.testing.assert_close(aux["loss/indexer"], 0.5 * loss)
    torch.testing.assert_close(aux["diag/indexer_kl"], loss)
    torch.testing.assert_close(aux["diag/indexer_mass_recall"], share)
    assert 0 < share < 1
    assert aux["diag/indexer_recall"].item() == pytest.approx(recall)
    assert aux["diag/indexer_skill"].item() == pytest.approx(skill)
    assert "diag/indexer_recall" not in layer(x)[1]
    parameters = list(layer.indexer.parameters())
    ours = torch.autograd.grad(aux["loss/indexer"], parameters)
    theirs = torch.autograd.grad(0.5 * loss, parameters)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert wanted.any()
        torch.testing.assert_close(mine, wanted)


def test_no_head_is_normalised_by_itself() -> None:
    """A head that looks into its window alone teaches nothing, however it spreads the rest."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(1, 12, 2, 4, generator=generator, dtype=torch.float64)
    kv = torch.randn(1, 12, 4, generator=generator, dtype=torch.float64)
    entries = torch.randn(1, 3, 4, generator=generator, dtype=torch.float64)
    seen = torch.arange(3) < (torch.arange(1, 13) // 4).unsqueeze(1)
    alone = entry_mass(queries[:, :, :1], kv, 3, None, entries, seen[None])
    sink = torch.tensor([0.0, 60.0], dtype=torch.float64)  # swallows the second head
    both = entry_mass(queries, kv, 3, sink, entries, seen[None])
    first = entry_mass(queries[:, :, :1], kv, 3, sink[:1], entries, seen[None])
    torch.testing.assert_close(both, first)
    assert (first[seen[None]] < alone[seen[None]]).all()


def test_mass_is_that_of_every_query_whatever_the_blocks() -> None:
    site = make_site("csa", sliding_window=8)
    generator = torch.Generator().manual_seed(0)
    queries, kv, entries = (
        torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        for shape in ((100, HEADS, WIDTH), (100, WIDTH), (25, WIDTH))
    )
    assert Blocks.best(100, site.dims.sliding_window).count > 1
    seen = torch.rand(2, 100, 25, generator=generator) < 0.5
    found = entry_mass(queries, kv, 8, None, entries, seen)
    for t in (0, 7, 50, 99):
        keys = torch.cat([kv[:, max(0, t - 7) : t + 1], entries], dim=1)
        logits = torch.einsum("bhc,bkc->bhk", queries[:, t], keys) / math.sqrt(WIDTH)
        hidden = torch.cat([torch.zeros(2, keys.shape[1] - 25, dtype=torch.bool), ~seen[:, t]], dim=1)
        weights = logits.masked_fill(hidden.unsqueeze(1), -torch.inf).softmax(-1)
        torch.testing.assert_close(found[:, t], weights[..., -25:].sum(1))


def test_divergence_is_none_where_the_teacher_is_matched_and_finite_where_it_gives_nothing() -> None:
    candidates = torch.tensor([[[True, True, False], [False, False, False], [True, True, True]]])
    mass = torch.tensor([[[0.2, 0.6, 0.0], [0.0, 0.0, 0.0], [0.1, 0.3, 0.0]]], dtype=torch.float64)
    matched = mass.log().masked_fill(mass == 0, -800.0).requires_grad_()
    loss = divergence(matched, mass, candidates)
    torch.testing.assert_close(loss, torch.zeros((), dtype=torch.float64))
    loss.backward()
    assert matched.grad is not None
    assert matched.grad.isfinite().all()
    flat = torch.zeros(1, 3, 3, dtype=torch.float64, requires_grad=True)
    wanted = (math.log(2) - 0.25 * math.log(4) - 0.75 * math.log(4 / 3) + math.log(3) - 0.25 * math.log(4)
              - 0.75 * math.log(4 / 3)) / 2  # fmt: skip
    loss = divergence(flat, mass, candidates)
    assert loss.item() == pytest.approx(wanted)
    loss.backward()
    assert flat.grad is not None
    assert not flat.grad[0, 1].any()
    assert not flat.grad[0, 0, 2]
    nobody = divergence(flat, mass, torch.zeros_like(candidates))
    assert nobody == 0


def test_recall_counts_the_queries_that_see_more_than_they_choose() -> None:
    mass = torch.tensor([[[0.1, 0.3, 0.0], [0.2, 0.2, 0.4]]])
    chosen = torch.tensor([[[True, False, False], [False, False, True]]])
    one = choice_quality(mass, chosen, torch.tensor([1, 3]), topk=1)
    both = choice_quality(mass, chosen, torch.tensor([2, 3]), topk=1)
    assert one["diag/indexer_mass_recall"].item() == pytest.approx(0.5)
    assert one["diag/indexer_recall"] == one["diag/indexer_skill"] == 1
    assert both["diag/indexer_mass_recall"].item() == pytest.approx((0.25 + 0.5) / 2)
    assert both["diag/indexer_recall"].item() == pytest.approx(0.5)
    assert both["diag/indexer_skill"].item() == pytest.approx((-1 + 1) / 2)
    nobody = choice_quality(mass, chosen, torch.tensor([1, 1]), topk=1)
    assert all(value.isnan() for value in nobody.values())


@pytest.mark.parametrize("stage", STAGES)
def test_each_loss_moves_its_own_parameters_alone(stage: str) -> None:
    model = LanguageModel(make_variant(indexer=Slot("lightning", {"train": stage})))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(31, (2, 41), generator=generator)
    output = model(ids[:, :-1], ids[:, 1:])
    own = [value for key, value in output.aux.items() if key.endswith("/indexer")]
    assert len(own) == (0 if stage == "none" else 2)
    parameters = dict(model.named_parameters())
    language = torch.autograd.grad(
        output.loss, list(parameters.values()), retain_graph=True, allow_unused=True
    )
    for name, gradient in zip(parameters, language, strict=True):
        assert (gradient is None) == (".indexer." in name), name
    if not own:
        return
    indexer = torch.autograd.grad(torch.stack(own).sum(), list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, indexer, strict=True):
        assert (gradient is not None and bool(gradient.any())) == (".indexer." in name), name


def test_layers_count_by_their_mean() -> None:
    ids = torch.randint(31, (2, 41), generator=torch.Generator().manual_seed(0))
    slot = Slot("lightning", {"loss_weight": 0.7})
    for schedule, layers in (("swa*4,csa@4", 1), ("swa,csa@4*4", 4)):
        aux = LanguageModel(make_variant(compress_ratios=schedule, indexer=slot))(ids).aux
        losses = {key: value for key, value in aux.items() if key.endswith("/indexer")}
        assert len(losses) == layers
        for key, value in losses.items():
            kl = aux[key.replace("loss/", "diag/") + "_kl"]
            torch.testing.assert_close(value, 0.7 / layers * kl)


@torch.no_grad()
def test_dense_stage_attends_to_everything_and_sparse_to_the_choice() -> None:
    x = inputs(make_site("csa"), LENGTH)
    none, sparse, dense = (make_layer(stage)(x)[0] for stage in ("none", "sparse", "dense"))
    assert torch.equal(none, sparse)
    every = make_attention(make_site("csa", {"topk": 10}))
    layer = make_layer("dense")
    every.load_state_dict(layer.state_dict())
    torch.testing.assert_close(dense, every(x)[0])
    assert (dense - sparse).abs().max() > 1e-3
    cast(Lightning, layer.indexer).stage = "sparse"
    assert torch.equal(layer(x)[0], sparse)


def test_training_teaches_the_indexer_what_attention_reads() -> None:
    """Attention held still, in the dense stage: divergence falls and the top-k keeps more of the mass."""
    layer = make_layer("dense", weight=1.0)
    x = inputs(make_site("csa"), 64, batch=4)
    with watching(layer):
        before = layer(x)[1]
    optimizer = torch.optim.Adam(layer.indexer.parameters(), lr=2e-2)
    for _ in range(40):
        layer.train()(x)[1]["loss/indexer"].backward()
        optimizer.step()
        layer.zero_grad()
    with watching(layer):
        after = layer(x)[1]
    assert after["diag/indexer_kl"] < 0.7 * before["diag/indexer_kl"]
    assert after["diag/indexer_mass_recall"] > before["diag/indexer_mass_recall"]
    assert after["diag/indexer_skill"] > before["diag/indexer_skill"]


@pytest.mark.parametrize("length", [3, 12, 33, 40])
@pytest.mark.parametrize("stage", STAGES)
def test_costs_and_the_work_of_a_training_step_are_exact(stage: str, length: int) -> None:
    """Projections of the indexer cost twice their forward, its scores three times, its teacher once."""
    d, q, width, heads = DIMS.hidden_size, DIMS.q_lora_rank, DIMS.index_head_dim, DIMS.index_n_heads
    site, entries = make_site("csa"), length // RATIO
    config = Lightning.Config(train=stage)
    cost = Lightning.cost(config, site, length)
    visible = sum((t + 1) // RATIO for t in range(length))
    unread = sum(max(0, (t + 1) // RATIO - TOPK) for t in range(length))
    projections = 2 * length * (4 * d * width + q * heads * width + d * heads)
    scores = 2 * heads * width * visible
    assert cost.forward_flops == projections + scores + (stage == "dense") * 4 * HEADS * WIDTH * unread
    assert (
        cost.train_flops
        == {
            "none": projections + scores,
            "sparse": 2 * projections + 3 * scores,
            "dense": 2 * projections + 3 * scores + 3 * 4 * HEADS * WIDTH * unread,
        }[stage]
    )

    layer, x = make_layer(stage), inputs(site, length, batch=1).requires_grad_()
    with native.switched_off(), FlopCounterMode(display=False) as forward, torch.no_grad():
        layer(x)
    others = (
        total_cost(site, length).kernel_flops - Lightning.cost(Lightning.Config(), site, length).kernel_flops
    )
    assert forward.get_total_flops() == others + cost.kernel_flops
    with native.switched_off(), FlopCounterMode(display=False) as counter:
        y, aux = layer(x)
        (y.sum() + sum(value for key, value in aux.items() if key.startswith("loss/"))).backward()
    blocks = Blocks.best(length, WINDOW)
    teacher = 2 * HEADS * WIDTH * (blocks.pairs + blocks.count * blocks.size * entries)
    kernel_projections = 2 * (entries * RATIO * 4 * d * width + length * (q * heads * width + d * heads))
    kernel_scores = 2 * heads * width * length * entries
    if stage == "none":
        own = (kernel_projections + kernel_scores) * (entries > TOPK)
    else:
        own = (2 * kernel_projections + 3 * kernel_scores + teacher) * (entries > 0)
    assert counter.get_total_flops() == 3 * others + own


def test_options_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="train='warm' is not one of none, dense, sparse"):
        Lightning.Config(train="warm")
    with pytest.raises(ValueError, match="loss_weight=0 must be positive"):
        Lightning.Config(loss_weight=0)
