"""Attention alternatives one query, head and key at a time, as their papers write them.

Written for the sizes of `attention_sites.DIMS`: 4 heads of 12 channels, 4 of them rotary.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean() + 1e-6).sqrt()


def _turned(x: Tensor, position: int, base: float) -> Tensor:
    """The last four channels of one vector, rotated in pairs."""
    out = x.clone()
    for i in range(2):
        angle = position * base ** (-2 * i / 4)
        a, b = x[-4 + 2 * i].item(), x[-3 + 2 * i].item()
        out[-4 + 2 * i] = a * math.cos(angle) - b * math.sin(angle)
        out[-3 + 2 * i] = a * math.sin(angle) + b * math.cos(angle)
    return out


def _softmax(query: Tensor, keys: list[Tensor], values: list[Tensor], sink: float = -math.inf) -> Tensor:
    exps = [math.exp(float(query @ key) / math.sqrt(len(query))) for key in keys]
    total = sum(exps) + math.exp(sink)
    return sum((e / total * v for e, v in zip(exps, values, strict=True)), torch.zeros_like(values[0]))


def _mla(layer: Any, x: Tensor, layer_fields: dict[str, Any], options: dict[str, Any]) -> Tensor:
    nope, rank = options.get("qk_nope_head_dim", 12), options.get("kv_lora_rank", 48)
    out = torch.zeros(len(x), 4, 12, dtype=x.dtype)
    keys: list[list[Tensor]] = [[] for _ in range(4)]
    values: list[list[Tensor]] = [[] for _ in range(4)]
    for t, token in enumerate(x):
        q = layer.q @ token if hasattr(layer, "q") else layer.q_b @ _rms(layer.q_a @ token, layer.q_a_norm)
        down = layer.kv_a @ token
        up = layer.kv_b @ _rms(down[:rank], layer.kv_a_norm)
        for h in range(4):
            query = _turned(q[h * (nope + 4) : (h + 1) * (nope + 4)], t, 1e4)
            mine = up[h * (nope + 12) : (h + 1) * (nope + 12)]
            keys[h].append(torch.cat((mine[:nope], _turned(down[rank:], t, 1e4))))
            values[h].append(mine[nope:])
            out[t, h] = _softmax(query, keys[h], values[h], float(layer.sink.sinks[h]))
    return out


def _by_head(matrix: Tensor, token: Tensor, head: int) -> Tensor:
    return matrix[head * 12 : (head + 1) * 12] @ token


def _moba(layer: Any, x: Tensor, fields: dict[str, Any], options: dict[str, Any]) -> Tensor:
    block, topk, groups = fields["ratio"], fields["topk"], len(layer.k) // 12
    out = torch.zeros(len(x), 4, 12, dtype=x.dtype)
    for h, t in itertools.product(range(4), range(len(x))):
        g = h * groups // 4
        keys = [_turned(_by_head(layer.k, token, g), i, 160000.0) for i, token in enumerate(x[: t + 1])]
        values = [_by_head(layer.v, token, g) for token in x[: t + 1]]
        query, own = _turned(_by_head(layer.q, x[t], h), t, 160000.0), t // block
        fit = {j: float(query @ (sum(keys[j * block : (j + 1) * block]) / block)) for j in range(own)}
        chosen = [*sorted(fit, key=lambda j: (-fit[j], j))[: topk - 1], own]
        seen = [i for i in range(t + 1) if i // block in chosen]
        out[t, h] = _softmax(
            query, [keys[i] for i in seen], [values[i] for i in seen], float(layer.sink.sinks[h])
        )
    return out


def _nsa(layer: Any, x: Tensor, fields: dict[str, Any], options: dict[str, Any]) -> Tensor:
    block, topk, groups, window = fields["ratio"], fields["topk"], len(layer.k["window"]) // 12, layer.window
    stride = options.get("compress_stride", {8: 2, 6: 1, 4: 1}[block])
    run = options.get("compress_block_size", 2 * stride)
    first, local = options.get("init_blocks", 1), options.get("local_blocks", 2)
    runs = [range(i, i + run) for i in range(0, len(x) - run + 1, stride)]

    def raw(matrices: Any, branch: str, g: int) -> list[Tensor]:
        return [_by_head(matrices[branch], token, g) for token in x]

    def entry(mlp: Any, tokens: list[Tensor], span: range) -> Tensor:
        flat = torch.cat([tokens[i] + mlp.position[i - span.start] for i in span])
        return mlp.outer @ F.gelu(mlp.inner @ flat)

    out = torch.zeros(len(x), 4, 12, dtype=x.dtype)
    for g in range(groups):
        heads = [h for h in range(4) if h * groups // 4 == g]
        k, v = ({b: raw(m, b, g) for b in ("compressed", "selected", "window")} for m in (layer.k, layer.v))
        for b in ("selected", "window"):
            k[b] = [_turned(key, i, 160000.0) for i, key in enumerate(k[b])]
        entry_k = [_turned(entry(layer.compress_k, k["compressed"], r), r.start, 160000.0) for r in runs]
        entry_v = [entry(layer.compress_v, v["compressed"], r) for r in runs]
        for t in range(len(x)):
            queries = {h: _turned(_by_head(layer.q, x[t], h), t, 160000.0) for h in heads}
            visible = [i for i, r in enumerate(runs) if r.stop - 1 <= t]
            own = t // block
            score = dict.fromkeys(range(own + 1), 0.0)
            for query in queries.values():
                exps = {i: math.exp(float(query @ entry_k[i]) / math.sqrt(12)) for i in visible}
                for i, j in itertools.product(visible, score):
                    strides = range(runs[i].start // stride, runs[i].stop // stride)
                    inside = sum(s * stride // block == j for s in strides)
                    score[j] += inside * exps[i] / sum(exps.values())
            fixed = [own - i for i in range(min(local, own + 1))]
            fixed += [j for j in range(min(first, own + 1)) if j not in fixed]
            rest = sorted((j for j in score if j not in fixed), key=lambda j: (-score[j], j))
            blocks = [*fixed, *rest][:topk]
            seen = {
                "selected": [i for i in range(t + 1) if i // block in blocks],
                "window": list(range(max(0, t - window + 1), t + 1)),
            }
            for h, query in queries.items():
                gates = torch.sigmoid(layer.gate[3 * h : 3 * h + 3] @ x[t])
                if visible:
                    out[t, h] += gates[0] * _softmax(
                        query, [entry_k[i] for i in visible], [entry_v[i] for i in visible]
                    )
                for gate, b in zip(gates[1:], ("selected", "window"), strict=True):
                    out[t, h] += gate * _softmax(
                        query, [k[b][i] for i in seen[b]], [v[b][i] for i in seen[b]]
                    )
    return out


def _gated_deltanet(layer: Any, x: Tensor, fields: dict[str, Any], options: dict[str, Any]) -> Tensor:
    def projected(name: str, t: int) -> Tensor:
        matrix = getattr(layer, name)
        if not options.get("use_short_conv", True):
            return F.silu(matrix @ x[t])
        taps = getattr(layer, f"{name}_conv")
        size = taps.shape[1]
        return F.silu(sum(taps[:, size - 1 - i] * (matrix @ x[t - i]) for i in range(min(size, t + 1))))

    states = torch.zeros(4, 12, 12, dtype=x.dtype)
    out = torch.zeros(len(x), 4, 12, dtype=x.dtype)
    for t, h in itertools.product(range(len(x)), range(4)):
        q, k, v = (projected(name, t)[h * 12 : (h + 1) * 12] for name in ("q", "k", "v"))
        q, k = q / (q @ q + 1e-6).sqrt() / math.sqrt(12), k / (k @ k + 1e-6).sqrt()
        decay = torch.exp(-layer.A_log[h].exp() * F.softplus(layer.a[h] @ x[t] + layer.dt_bias[h]))
        beta = torch.sigmoid(layer.b[h] @ x[t])
        forget = torch.eye(12, dtype=x.dtype) - beta * torch.outer(k, k)
        states[h] = decay * forget @ states[h] + beta * torch.outer(k, v)
        gate = F.silu(layer.gate[h * 12 : (h + 1) * 12] @ x[t])
        out[t, h] = _rms(states[h].T @ q, layer.norm) * gate
    return out


NAIVE: dict[str, Callable[..., Tensor]] = {
    "mla": _mla,
    "moba": _moba,
    "nsa": _nsa,
    "gated_deltanet": _gated_deltanet,
}
