"""DeepSeek-V4 models of transformers to ours and back, with the same logits."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

from ablate.errors import BadInputError
from ablate.model import LanguageModel
from ablate.schema import Model, Run, Slot
from ablate.variant import Variant
from components.spec import Layer

KINDS = {
    "sliding_window": "sliding_attention",
    "csa": "compressed_sparse_attention",
    "hca": "heavily_compressed_attention",
}
"""Our `attention` entries to transformers' layer types."""

ROUTERS = {"learned": "moe", "hash": "hash_moe"}

SAME = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "q_lora_rank",
    "o_groups",
    "o_lora_rank",
    "sliding_window",
    "index_n_heads",
    "index_head_dim",
    "index_topk",
    "moe_intermediate_size",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "routed_scaling_factor",
    "rms_norm_eps",
    "initializer_range",
    "max_position_embeddings",
    "qk_rope_head_dim",
)
"""Sizes with the same name on both sides."""

YARN = {
    "yarn_factor": "factor",
    "yarn_original": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}

ENTRIES = {
    "residual": "mhc",
    "norm": "rmsnorm",
    "post_norm": "none",
    "position": "rope",
    "sink": "per_head",
    "output_projection": "grouped",
    "compressor": "gated",
    "indexer": "lightning",
    "ffn": "moe",
    "router": "learned",
}
"""The only component of each slot that transformers' model has."""


def from_transformers(hf_model: DeepseekV4ForCausalLM) -> LanguageModel:
    """Our model with the configuration and the weights of transformers' one, in its precision, on its device.

    Raises:
        BadInputError: a setting that the components here do not have.
    """
    variant = Variant.from_run(_run(hf_model.config))
    model = LanguageModel(variant).to(
        dtype=hf_model.lm_head.weight.dtype, device=hf_model.lm_head.weight.device
    )
    source = hf_model.state_dict()
    target = model.state_dict()
    with torch.no_grad():
        for ours, theirs in _names(variant):
            target.pop(ours).copy_(torch.cat([source[name] for name in theirs]))
    assert not target, f"no counterpart for {sorted(target)}"
    return model.train(hf_model.training)


def to_transformers(model: LanguageModel) -> DeepseekV4ForCausalLM:
    """Transformers' model (eager attention and experts) with the configuration and the weights of ours.

    Prediction layers stay behind: transformers has none, and logits do not depend on them.

    Raises:
        BadInputError: a component or an option that it cannot express, by name.
    """
    hf_model = DeepseekV4ForCausalLM(_config(model.variant))
    nn.Module.to(hf_model, dtype=model.head.dtype, device=model.head.device)
    source, target = model.state_dict(), hf_model.state_dict()
    with torch.no_grad():
        for ours, theirs in _names(model.variant):
            _split(source[ours], [target[name] for name in theirs])
    return hf_model.train(model.training)


def _split(source: Tensor, targets: list[Tensor]) -> None:
    for target, part in zip(targets, source.split([len(target) for target in targets]), strict=True):
        target.copy_(part)


def _run(config: Any) -> Run:
    """Our configuration of transformers' one."""
    if config.scoring_func != "sqrtsoftplus":
        raise BadInputError(f"scoring_func={config.scoring_func} is not available. Allowed: sqrtsoftplus.")
    hashed = [kind == "hash_moe" for kind in config.mlp_layer_types]
    if hashed != sorted(hashed, reverse=True):
        raise BadInputError(
            f"mlp_layer_types={config.mlp_layer_types}: hash_moe is only available in the first layers."
        )
    main, compress = config.rope_parameters["main"], config.rope_parameters["compress"]
    if main["rope_type"] != "default" or compress["rope_type"] not in ("default", "yarn"):
        raise BadInputError(
            f"rope_parameters={config.rope_parameters} is not available. Allowed rope_type: default, "
            "in compressing layers also yarn."
        )
    rope = {"rope_theta": main["rope_theta"], "compress_rope_theta": compress["rope_theta"]}
    if compress["rope_type"] == "yarn":
        rope |= {ours: compress[theirs] for ours, theirs in YARN.items() if compress.get(theirs) is not None}
    names = {kind: name for name, kind in KINDS.items()}
    tokens = [
        names[kind] + (f"@{config.compress_rates[kind]}" if kind in config.compress_rates else "")
        for kind in config.layer_types
    ]
    sizes = {name: getattr(config, name) for name in SAME}
    model = Model(name="transformers", compress_ratios=tokens, num_hash_layers=sum(hashed), **sizes)
    options = {
        "residual": {
            "hc_mult": config.hc_mult,
            "hc_sinkhorn_iters": config.hc_sinkhorn_iters,
            "hc_eps": config.hc_eps,
        },
        "position": rope,
        "ffn": {"swiglu_limit": 0.0 if config.swiglu_limit == math.inf else config.swiglu_limit},
    }
    slots = {slot: Slot(name, options.get(slot, {})) for slot, name in ENTRIES.items()}
    return dataclasses.replace(Run(), model=model, **slots)


def _config(variant: Variant) -> DeepseekV4Config:
    """Transformers' configuration of our variant."""
    options: dict[str, Any] = {}
    for slot, name, config in variant.slots:
        options[slot] = config
        if slot == "attention" and name not in KINDS:
            raise _inexpressible("model.compress_ratios", variant.schedule, f"layers of {', '.join(KINDS)}")
        if slot in ENTRIES and name != ENTRIES[slot] and (slot, name) != ("router", "hash"):
            raise _inexpressible(slot, name, ENTRIES[slot])
    if "indexer" in options and options["indexer"].train == "dense":
        raise _inexpressible("indexer.args.train", "dense", "attention to the top-k entries")
    for slot, option, only in (("ffn", "activation", "swiglu"), ("residual", "hc_head", "learned")):
        if getattr(options[slot], option) != only:
            raise _inexpressible(f"{slot}.args.{option}", getattr(options[slot], option), only)
    if variant.dims.n_shared_experts != 1:
        raise _inexpressible("model.n_shared_experts", variant.dims.n_shared_experts, 1)
    rates: dict[str, int] = {}
    topk = 1
    for layer in variant.layers:
        if layer.overlap != (layer.attention == "csa"):
            raise _inexpressible("model.compress_ratios", variant.schedule, "overlap in csa and nowhere else")
        if layer.ratio and rates.setdefault(KINDS[layer.attention], layer.ratio) != layer.ratio:
            raise _inexpressible("model.compress_ratios", variant.schedule, "one ratio per kind of layer")
        if layer.topk:
            topk = layer.topk
    if len({layer.topk for layer in variant.layers if layer.topk}) > 1:
        raise _inexpressible("model.compress_ratios", variant.schedule, "the same top-k in all csa layers")
    sizes = {name: getattr(variant.dims, name) for name in SAME if hasattr(variant.dims, name)}
    sizes["num_hidden_layers"] = len(variant.layers)
    rotary = sizes.pop("qk_rope_head_dim")
    position = options["position"]
    factor = rotary / variant.dims.head_dim
    if int(variant.dims.head_dim * factor) < rotary:  # transformers rounds down
        factor = math.nextafter(factor, 1.0)
    compress: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": position.compress_rope_theta,
        "partial_rotary_factor": factor,
    }
    if position.yarn_factor != 1:
        compress |= {"rope_type": "yarn", "attention_factor": 1.0}
        compress |= {theirs: getattr(position, ours) for ours, theirs in YARN.items()}
    main = {"rope_type": "default", "rope_theta": position.rope_theta, "partial_rotary_factor": factor}
    residual = options["residual"]
    build: Any = DeepseekV4Config
    config = build(
        **sizes,
        num_key_value_heads=1,
        index_topk=topk,
        layer_types=[KINDS[layer.attention] for layer in variant.layers],
        mlp_layer_types=[ROUTERS[layer.router] for layer in variant.layers],
        compress_rates={**build.default_compress_rates, **rates},
        partial_rotary_factor=factor,
        rope_parameters={"main": main, "compress": compress},
        hc_mult=residual.hc_mult,
        hc_sinkhorn_iters=residual.hc_sinkhorn_iters,
        hc_eps=residual.hc_eps,
        swiglu_limit=options["ffn"].swiglu_limit or math.inf,
        num_nextn_predict_layers=0,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    assert config.qk_rope_head_dim == rotary
    return config


def _inexpressible(key: str, value: Any, allowed: Any) -> BadInputError:
    return BadInputError(f"transformers' DeepseekV4 has no {key}={value}. It only has {allowed}.")


def _names(variant: Variant) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every tensor of ours, and those of transformers that it is the concatenation of."""
    yield "embedding", ("model.embed_tokens.weight",)
    yield "head", ("lm_head.weight",)
    yield "norm.weight", ("model.norm.weight",)
    for name in ("fn", "base", "scale"):
        yield f"collapse.{name}", (f"model.hc_head.hc_{name}",)
    for layer in variant.layers:
        for ours, theirs in _layer_names(layer):
            prefix = f"model.layers.{layer.index}."
            yield f"layers.{layer.index}.{ours}", tuple(prefix + name for name in theirs)


def _layer_names(layer: Layer) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "attention_norm.weight", ("input_layernorm.weight",)
    yield "ffn_norm.weight", ("post_attention_layernorm.weight",)
    for name in ("fn", "base", "scale"):
        yield f"attention_residual.{name}", (f"attn_hc.{name}",)
        yield f"ffn_residual.{name}", (f"ffn_hc.{name}",)
    for ours, theirs in ATTENTION.items():
        yield f"attention.{ours}", (f"self_attn.{theirs}",)
    if layer.ratio:
        for ours, theirs in COMPRESSOR.items():
            yield f"attention.compressor.{ours}", (f"self_attn.compressor.{theirs}",)
    if layer.attention == "csa":
        for ours, theirs in INDEXER.items():
            yield f"attention.indexer.{ours}", (f"self_attn.compressor.indexer.{theirs}",)
    yield "ffn.gate_up", ("mlp.experts.gate_up_proj",)
    yield "ffn.down", ("mlp.experts.down_proj",)
    shared = "mlp.shared_experts"
    yield "ffn.shared.gate_up", (f"{shared}.gate_proj.weight", f"{shared}.up_proj.weight")
    yield "ffn.shared.down", (f"{shared}.down_proj.weight",)
    yield "ffn.router.weight", ("mlp.gate.weight",)
    buffer = "tid2eid" if layer.router == "hash" else "e_score_correction_bias"
    yield f"ffn.router.{buffer}", (f"mlp.gate.{buffer}",)


ATTENTION = {
    "q_a": "q_a_proj.weight",
    "q_a_norm": "q_a_norm.weight",
    "q_b": "q_b_proj.weight",
    "kv": "kv_proj.weight",
    "kv_norm": "kv_norm.weight",
    "sink.sinks": "sinks",
    "output_projection.a": "o_a_proj.weight",
    "output_projection.b": "o_b_proj.weight",
}
COMPRESSOR = {
    "kv": "kv_proj.weight",
    "gate": "gate_proj.weight",
    "ape": "position_bias",
    "norm": "kv_norm.weight",
}
INDEXER = {
    "q_b": "q_b_proj.weight",
    "weights": "scorer.weights_proj.weight",
    **{f"compressor.{ours}": theirs for ours, theirs in COMPRESSOR.items()},
}
