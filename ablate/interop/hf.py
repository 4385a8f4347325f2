"""DeepSeek-V4 models of transformers to ours and back, with the same logits."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

from ablate.errors import BadInputError
from ablate.interop import expressible
from ablate.interop.expressible import ENTRIES, KINDS, YARN
from ablate.interop.layout import places
from ablate.model import LanguageModel
from ablate.schema import Model, Run, Slot
from ablate.variant import Variant

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

WHOSE = "transformers' DeepseekV4"


def from_transformers(hf_model: DeepseekV4ForCausalLM) -> LanguageModel:
    """Our model with the configuration and the weights of transformers' one, in its precision, on its device.

    Raises:
        BadInputError: a setting that the components here do not have.
    """
    variant = Variant.from_run(run_of(hf_model.config))
    model = LanguageModel(variant).to(
        dtype=hf_model.lm_head.weight.dtype, device=hf_model.lm_head.weight.device
    )
    source = hf_model.state_dict()
    target = model.state_dict()
    with torch.no_grad():
        for place in places(variant):
            target[place.ours].copy_(torch.cat([source[name] for name in place.native]))
    return model.train(hf_model.training)


def to_transformers(model: LanguageModel) -> DeepseekV4ForCausalLM:
    """Transformers' model (eager attention and experts) with the configuration and the weights of ours.

    Prediction layers stay behind: transformers has none, and logits do not depend on them.

    Raises:
        BadInputError: a component or an option that it cannot express, by name.
    """
    hf_model = DeepseekV4ForCausalLM(config_of(model.variant))
    nn.Module.to(hf_model, dtype=model.head.dtype, device=model.head.device)
    source, target = model.state_dict(), hf_model.state_dict()
    with torch.no_grad():
        for place in places(dataclasses.replace(model.variant, prediction_layers=())):
            _split(source[place.ours], [target[name] for name in place.native])
    return hf_model.train(model.training)


def _split(source: Tensor, targets: list[Tensor]) -> None:
    for target, part in zip(targets, source.split([len(target) for target in targets]), strict=True):
        target.copy_(part)


def run_of(config: Any) -> Run:
    """Our configuration of transformers' one, without prediction layers.

    Raises:
        BadInputError: a setting that the components here do not have.
    """
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


def config_of(variant: Variant) -> DeepseekV4Config:
    """Transformers' configuration of our variant, prediction layers left out.

    Raises:
        BadInputError: a component or an option that it cannot express, by name.
    """
    options = expressible.options(variant, WHOSE)
    rates: dict[str, int] = {}
    for layer in variant.layers:
        if layer.ratio and rates.setdefault(KINDS[layer.attention], layer.ratio) != layer.ratio:
            raise expressible.inexpressible(
                WHOSE, "model.compress_ratios", variant.schedule, "one ratio per kind of layer"
            )
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
        index_topk=expressible.topk(variant),
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
