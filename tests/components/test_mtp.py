"""Multi-token prediction against its definition, derived once more from the formulas in double precision."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from variants import SIZES, make_variant

from ablate.model import LanguageModel, Output
from ablate.schema import Slot
from components import native

KINDS = ("v4", "v3")
LENGTH = 17
D, N, HEADS, WIDTH, ROTARY, GROUPS, WINDOW, EXPERTS, CHOSEN = 32, 4, 4, 16, 8, 2, 6, 4, 2
EPS = 1e-6


def make_model(kind: str = "v4", depth: int = 1, **changes: Any) -> LanguageModel:
    """In double precision, every parameter and balancing bias random."""
    variant = make_variant(num_nextn_predict_layers=depth, mtp=Slot(kind), **changes)
    model, generator = LanguageModel(variant).double(), torch.Generator().manual_seed(7)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.requires_grad or name.endswith("correction_bias"):
            scale = 0.02 if "correction" in name else 0.3 if tensor.ndim == 1 else tensor.shape[-1] ** -0.5
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.data.copy_(scale * values + ("norm" in name))
    return model


def tokens(batch: int = 2, length: int = LENGTH, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs, and labels that are the inputs shifted by one."""
    ids = torch.randint(31, (batch, length + 1), generator=torch.Generator().manual_seed(seed))
    return ids[:, :-1], ids[:, 1:]


def run(
    model: LanguageModel, ids: Tensor, labels: Tensor, **kwargs: Any
) -> tuple[list[Tensor], Tensor, Output]:
    """Logits of the prediction layers, the streams that the first of them starts from, and the output."""
    seen: dict[str, Any] = {}

    def keep(module: torch.nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        seen["logits"], seen["state"] = outputs[0], inputs[0]

    hook = model.mtp.register_forward_hook(keep)
    output = model(ids, labels, **kwargs)
    hook.remove()
    return seen["logits"], seen["state"], output


# ------------------------------------------------------------ the block by its formulas, one token at a time


def rms(x: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


def site(
    streams: Tensor, p: dict[str, Tensor], name: str, norm: Tensor, branch: Callable[[Tensor], Tensor]
) -> Tensor:
    """Streams [s, n, d] after one branch behind manifold-constrained hyper-connections."""
    fn, base, scale = (p[f"{name}.{part}"] for part in ("fn", "base", "scale"))
    mixes = []
    for x in streams:
        z = fn @ rms(x.reshape(-1))
        pre = torch.sigmoid(scale[0] * z[:N] + base[:N]) + EPS
        post = 2 * torch.sigmoid(scale[1] * z[N : 2 * N] + base[N : 2 * N])
        comb = (scale[2] * z[2 * N :] + base[2 * N :]).view(N, N).softmax(-1) + EPS
        comb = comb / (comb.sum(0, keepdim=True) + EPS)
        for _ in range(19):
            comb = comb / (comb.sum(1, keepdim=True) + EPS)
            comb = comb / (comb.sum(0, keepdim=True) + EPS)
        mixes.append((pre @ x, post, comb))
    outputs = branch(torch.stack([rms(u, norm) for u, _, _ in mixes]))
    return torch.stack(
        [
            torch.outer(post, y) + comb.T @ x
            for (_, post, comb), x, y in zip(mixes, streams, outputs, strict=True)
        ]
    )


def rotate(x: Tensor, position: int, direction: int = 1) -> Tensor:
    """The last channels of one vector, in neighbouring pairs, as complex numbers."""
    pairs = torch.view_as_complex(x[-ROTARY:].reshape(-1, 2).contiguous())
    angles = torch.tensor(
        [position * 10000 ** (-2 * i / ROTARY) for i in range(ROTARY // 2)], dtype=torch.float64
    )
    turned = pairs * torch.polar(torch.ones(ROTARY // 2, dtype=torch.float64), direction * angles)
    return torch.cat([x[:-ROTARY], torch.view_as_real(turned).flatten()])


def attention(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    """A window of tokens, a sink, one key that is the value too, grouped output."""
    queries = rms(x @ p["q_a"].T, p["q_a_norm"]) @ p["q_b"].T
    keys = rms(x @ p["kv"].T, p["kv_norm"])
    keys = torch.stack([rotate(key, t) for t, key in enumerate(keys)])
    out = []
    for t, query in enumerate(queries):
        window = keys[max(0, t - WINDOW + 1) : t + 1]
        heads = []
        for head, q in enumerate(query.view(HEADS, WIDTH)):
            weights = (window @ rotate(rms(q), t) / math.sqrt(WIDTH)).exp()
            weights = weights / (weights.sum() + p["sink.sinks"][head].exp())
            heads.append(rotate(weights @ window, t, -1))
        grouped = torch.stack(heads).view(GROUPS, -1)
        rows = p["output_projection.a"].view(GROUPS, -1, grouped.shape[1])
        out.append(p["output_projection.b"] @ torch.cat([a @ g for a, g in zip(rows, grouped, strict=True)]))
    return torch.stack(out)


def experts(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    """Learned routing by biased scores, weights by bare ones, and a shared expert."""

    def expert(u: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        gate, up = (gate_up @ u).chunk(2)
        return down @ (F.silu(gate.clamp(max=10)) * up.clamp(-10, 10))

    out = []
    for u in x:
        scores = F.softplus(p["router.weight"] @ u).sqrt()
        chosen = sorted(range(EXPERTS), key=lambda e: -(scores + p["router.e_score_correction_bias"])[e])[
            :CHOSEN
        ]
        y = expert(u, p["shared.gate_up"], p["shared.down"])
        for e in chosen:
            y = y + 1.5 * scores[e] / scores[chosen].sum() * expert(u, p["gate_up"][e], p["down"][e])
        out.append(y)
    return torch.stack(out)


def collapse(streams: Tensor, p: dict[str, Tensor]) -> Tensor:
    weights = [torch.sigmoid(p["scale"] * (p["fn"] @ rms(x.reshape(-1))) + p["base"]) + EPS for x in streams]
    return torch.stack([w @ x for w, x in zip(weights, streams, strict=True)])


def under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def predict(model: LanguageModel, kind: str, depth: int, streams: Tensor, ids: Tensor) -> list[Tensor]:
    """Logits of all prediction layers for one sequence, whose last layer left `streams` [s, n, d]."""
    everything = model.state_dict()
    hidden = collapse(streams, under(everything, "collapse."))
    found = []
    for k in range(depth):
        p = under(everything, f"mtp.{k}.")
        positions = len(ids) - k - 1
        e = rms(everything["embedding"][ids[k + 1 :]], p["join.enorm"])
        if kind == "v4":
            h = rms(streams[:positions], p["join.hnorm"])
            start = (e @ p["join.e_proj"].T)[:, None] + h @ p["join.h_proj"].T
        else:
            h = rms(hidden[:positions], p["join.hnorm"])
            start = (torch.cat([e, h], -1) @ p["join.eh_proj"].T)[:, None].expand(-1, N, -1)
        b = under(p, "block.")
        streams = site(
            start,
            b,
            "attention_residual",
            b["attention_norm.weight"],
            lambda x, b=b: attention(x, under(b, "attention.")),
        )
        streams = site(
            streams, b, "ffn_residual", b["ffn_norm.weight"], lambda x, b=b: experts(x, under(b, "ffn."))
        )
        hidden = collapse(streams, under(p, "collapse."))
        found.append(rms(hidden, p["norm.weight"]) @ everything["head"].T)
    return found


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_logits_losses_and_acceptance_follow_the_definition(kind: str) -> None:
    depth, weight = 2, 0.4
    model = make_model(kind, depth)
    model.mtp.weight = weight
    ids, labels = tokens()
    further, streams, output = run(model, ids, labels)
    for row in range(2):
        for ours, theirs in zip(further, predict(model, kind, depth, streams[row], ids[row]), strict=True):
            torch.testing.assert_close(ours[row], theirs, rtol=1e-9, atol=1e-9)
    text = torch.cat([ids, labels[:, -1:]], dim=1)
    for k, suffix in ((1, ""), (2, "_2")):
        nats, same = [], []
        for row in range(2):
            for i in range(LENGTH - k):
                nats.append(-further[k - 1][row, i].log_softmax(-1)[text[row, i + k + 1]])
                same.append(further[k - 1][row, i].argmax() == output.logits[row, i + k].argmax())
        mean = torch.stack(nats).mean()
        torch.testing.assert_close(output.aux[f"diag/mtp/loss{suffix}"], mean)
        torch.testing.assert_close(output.aux[f"loss/mtp/loss{suffix}"], weight / depth * mean)
        torch.testing.assert_close(output.aux[f"diag/mtp/accept{suffix}"], torch.stack(same).double().mean())


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_no_prediction_sees_its_target(kind: str) -> None:
    """Layer k knows tokens up to i + k at position i, uses the last of them, and nothing later."""
    model = make_model(kind, depth=2).eval()
    ids, labels = tokens(1)
    before = run(model, ids, labels)[0]
    for t in (3, 8, LENGTH - 1):
        changed = ids.clone()
        changed[0, t] = (changed[0, t] + 1) % 31
        for k, (old, new) in enumerate(zip(before, run(model, changed, labels)[0], strict=True), start=1):
            moved = (old - new).abs().amax(-1)[0]
            # Experts' products are grouped anew, which may round anew.
            assert moved[: t - k].max() < 1e-12
            assert moved[t - k] > 1e-6


def test_only_the_prediction_loss_trains_prediction_layers_and_it_trains_all_before_them() -> None:
    for kind, untouched in (("v4", ("norm.", "collapse.")), ("v3", ("norm.",))):
        model = make_model(kind)
        ids, labels = tokens(8)
        output = model(ids, labels)
        parameters = dict(model.named_parameters())
        assert not [
            name for name in parameters if name.startswith("mtp") and name.endswith(("embedding", "head"))
        ]
        main = torch.autograd.grad(
            output.loss, list(parameters.values()), retain_graph=True, allow_unused=True
        )
        for name, gradient in zip(parameters, main, strict=True):
            assert (gradient is None) == (name.startswith("mtp.") or "indexer" in name), name
        further = torch.autograd.grad(
            output.aux["loss/mtp/loss"], list(parameters.values()), allow_unused=True
        )
        for name, gradient in zip(parameters, further, strict=True):
            if name.startswith(untouched) or "indexer" in name:
                assert gradient is None, name
            else:
                assert gradient is not None, name
                assert gradient.any(), name


@torch.no_grad()
def test_kinds_are_one_where_there_is_one_stream() -> None:
    single: dict[str, Any] = {"residual": Slot("prenorm")}
    v4, v3 = make_model("v4", **single), make_model("v3", **single)
    state = v4.state_dict()
    state["mtp.0.join.eh_proj"] = torch.cat(
        [state.pop("mtp.0.join.e_proj"), state.pop("mtp.0.join.h_proj")], dim=1
    )
    v3.load_state_dict(state)
    ids, labels = tokens()
    torch.testing.assert_close(run(v3, ids, labels)[0], run(v4, ids, labels)[0])
    assert sum(p.numel() for p in v3.parameters()) == sum(p.numel() for p in v4.parameters())


@torch.no_grad()
def test_a_label_left_out_leaves_out_every_prediction_across_it() -> None:
    model = make_model(depth=2)
    ids, labels = tokens(1)
    left = labels.clone()
    left[0, 9] = -100
    further, _, output = run(model, ids, left)
    for k, suffix in ((1, ""), (2, "_2")):
        kept = [i for i in range(LENGTH - k) if not i <= 9 <= i + k]
        nats = -further[k - 1][0].log_softmax(-1)[torch.arange(LENGTH - k), labels[0, k:]]
        torch.testing.assert_close(output.aux[f"diag/mtp/loss{suffix}"], nats[kept].mean())


@torch.no_grad()
def test_packed_documents_predict_what_they_predict_alone() -> None:
    model = make_model(depth=2)
    first, second = tokens(1, 7, seed=1), tokens(1, 10, seed=2)
    ids, labels = (torch.cat(pair, dim=1) for pair in zip(first, second, strict=True))
    labels = labels.clone()
    labels[0, 6] = -100
    doc_ids = torch.tensor([[0] * 7 + [1] * 10])
    packed = run(model, ids, labels, doc_ids=doc_ids)
    alone = [run(model, *document) for document in (first, second)]
    for k in (1, 2):
        torch.testing.assert_close(packed[0][k - 1][:, : 7 - k], alone[0][0][k - 1])
        torch.testing.assert_close(packed[0][k - 1][:, 7:], alone[1][0][k - 1])
    counts = torch.tensor([5.0, 9.0], dtype=torch.float64)  # the label left out takes one more prediction
    nats = [
        -logits[0][0, : int(n)].log_softmax(-1)[torch.arange(int(n)), document[1][0, 1 : int(n) + 1]].sum()
        for (logits, _, _), document, n in zip(alone, (first, second), counts, strict=True)
    ]
    torch.testing.assert_close(packed[2].aux["diag/mtp/loss"], torch.stack(nats).sum() / counts.sum())


@pytest.mark.parametrize("kind", KINDS)
def test_costs_are_those_of_a_block_the_joining_and_the_head_once_more(kind: str) -> None:
    d, d_q, c, r, f, vocabulary = D, SIZES["q_lora_rank"], WIDTH, SIZES["o_lora_rank"], 20, 31
    s = 24
    table, without = (
        make_variant(num_nextn_predict_layers=depth, mtp=Slot(kind)).costs(s) for depth in (1, 0)
    )
    assert table.backbone == without.total
    length = s - 1
    pairs = sum(min(t + 1, WINDOW) for t in range(length))
    matrices = d * d_q + d_q * HEADS * c + d * c + HEADS * c * r + GROUPS * r * d
    mixing = 2 * (2 * N + N * N) * N * d + 2 * (2 * N * d + N * N * d)
    streams = 1 + N if kind == "v4" else 2
    forward = (
        2 * length * matrices
        + 4 * HEADS * c * pairs
        + 2 * length * mixing
        + length * (6 * d * f * (CHOSEN + 1) + 2 * d * EXPERTS)
        + length * (2 * N * N * d + 2 * N * d)
        + 2 * length * d * d * streams
        + 2 * length * d * vocabulary
    )
    assert table.prediction.flops == table.prediction.forward_flops == forward
    assert table.total.train_flops - without.total.train_flops == 3 * forward
    layer = (
        matrices
        + d_q
        + c
        + HEADS
        + 2 * ((2 * N + N * N) * (N * d + 1) + 3)
        + 2 * d
        + (EXPERTS + 1) * 3 * d * f
        + EXPERTS * d
    )
    assert table.prediction.params == layer + 2 * d * d + 3 * d + N * N * d + N + 1
    assert table.prediction.active_params == table.prediction.params - (EXPERTS - CHOSEN) * 3 * d * f
    assert (table.total.kv_bytes, table.total.decode_flops) == (
        without.total.kv_bytes,
        without.total.decode_flops,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_runs_what_the_costs_say(kind: str) -> None:
    """The backward runs every product of the forward twice, but those of the frozen mass that teaches."""
    ids, labels = tokens(1, 24)
    counted = []
    for depth in (0, 1):
        model = make_model(kind, depth)
        with native.switched_off(), FlopCounterMode(display=False) as counter:
            output = model(ids, labels)
            sum((v for k, v in output.aux.items() if k.startswith("loss/")), output.loss).backward()
        counted.append(counter.get_total_flops())
    prediction = make_variant(num_nextn_predict_layers=1, mtp=Slot(kind)).costs(24).prediction
    assert counted[1] - counted[0] == 3 * prediction.kernel_flops


def test_without_labels_and_without_layers_nothing_is_predicted() -> None:
    model = make_model()
    ids, labels = tokens()
    assert not [key for key in model(ids).aux if "mtp" in key]
    plain = make_model(depth=0)
    assert not [key for key in plain(ids, labels).aux if "mtp" in key]
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("mtp.")})
    assert torch.equal(plain(ids).logits, model(ids, labels).logits)
