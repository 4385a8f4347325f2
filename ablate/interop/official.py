"""The official `config.json` of DeepSeek-V4 to our configuration and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ablate.errors import BadInputError
from ablate.interop import expressible
from ablate.interop.expressible import ENTRIES, YARN
from ablate.interop.quantised import BLOCK
from ablate.schema import Model, Run, Slot
from ablate.variant import Variant
from components import registry

WHOSE = "the official DeepSeek-V4"
CSA_RATIO = 4
"""The ratio by which official code tells CSA from HCA."""

SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "qk_rope_head_dim",
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
    "num_hash_layers",
    "num_nextn_predict_layers",
    "max_position_embeddings",
    "routed_scaling_factor",
    "rms_norm_eps",
)
"""Fields with the same name on both sides."""

OPTIONS = {
    "hc_mult": ("residual", int),
    "hc_sinkhorn_iters": ("residual", int),
    "hc_eps": ("residual", float),
    "rope_theta": ("position", float),
    "compress_rope_theta": ("position", float),
    "swiglu_limit": ("ffn", float),
}
"""Fields that are options of a component here."""

ONLY = {
    "model_type": "deepseek_v4",
    "num_key_value_heads": 1,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
}
"""Fields with the only value that the components here have, if they are there."""

QUANTISED = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "scale_fmt": "ue8m0",
    "weight_block_size": [BLOCK, BLOCK],
    "activation_scheme": "dynamic",
}
"""`quantization_config` of files in FP8."""


def run_of(config: Mapping[str, Any]) -> Run:
    """Our configuration of an official one.

    Raises:
        BadInputError: a field is missing, of the wrong type, or has a value that the components here do not have.
    """
    for key, only in (*ONLY.items(), *((f"quantization_config.{k}", v) for k, v in QUANTISED.items())):
        group, _, name = key.rpartition(".")
        found = config.get(group) or {} if group else config
        if name in found and found[name] != only:
            raise BadInputError(f"config.json: {key}={found[name]} is not available. Allowed: {only}.")
    types = {field.name: field.type for field in dataclasses.fields(Model)}
    sizes = {name: _number(config, name, types[name]) for name in SIZES}
    ratios = config.get("compress_ratios")
    if not isinstance(ratios, list) or not all(type(ratio) is int and ratio >= 0 for ratio in ratios):
        raise BadInputError(f"config.json: compress_ratios={ratios} is no list of integers, 0 or more.")
    args: dict[str, dict[str, Any]] = {}
    for name, (slot, kind) in OPTIONS.items():
        args.setdefault(slot, {})[name] = _number(config, name, kind)
    if scaling := config.get("rope_scaling"):
        kind = scaling.get("type", scaling.get("rope_type"))
        if kind != "yarn":
            raise BadInputError(f"config.json: rope_scaling.type={kind} is not available. Allowed: yarn.")
        args["position"] |= {
            ours: _number(scaling, theirs, int if ours == "yarn_original" else float)
            for ours, theirs in YARN.items()
        }
    model = Model(
        name="official",
        compress_ratios=ratios,
        initializer_range=_number({"initializer_range": 0.02, **config}, "initializer_range", float),
        **sizes,
    )
    slots = {slot: Slot(name, args.get(slot, {})) for slot, name in ENTRIES.items()}
    return dataclasses.replace(Run(), model=model, mtp=Slot("v4"), **slots)


def config_of(variant: Variant) -> dict[str, Any]:
    """The official configuration of our variant, without what says how weights are stored.

    Raises:
        BadInputError: a component or an option that official code does not have, by name.
    """
    options = expressible.options(variant, WHOSE)
    for layer in variant.layers:
        if layer.ratio and (layer.ratio == CSA_RATIO) != (layer.attention == "csa"):
            only = f"csa with ratio {CSA_RATIO}, and hca with any other"
            raise expressible.inexpressible(WHOSE, "model.compress_ratios", variant.schedule, only)
    dims, position = variant.dims, options["position"]
    sizes = {name: getattr(dims, name) for name in SIZES if hasattr(dims, name)}
    further = len(variant.prediction_layers)
    yarn = {theirs: getattr(position, ours) for ours, theirs in YARN.items()}
    return {
        "architectures": ["DeepseekV4ForCausalLM"],
        **ONLY,
        **sizes,
        "num_hash_layers": sum(layer.router == "hash" for layer in variant.layers),
        "num_nextn_predict_layers": further,
        "index_topk": expressible.topk(variant),
        "compress_ratios": [layer.ratio for layer in variant.layers] + [0] * further,
        "initializer_range": dims.initializer_range,
        **{name: getattr(options[slot], name) for name, (slot, _) in OPTIONS.items()},
        "rope_scaling": {"type": "yarn", **yarn} if position.yarn_factor != 1 else None,
    }


def _number(config: Mapping[str, Any], name: str, kind: Any) -> Any:
    """A field, checked to be a number of its kind."""
    if name not in config:
        raise BadInputError(f"config.json: {registry.unknown('field', name, config)}")
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        allowed = "an integer" if kind is int else "a number"
        raise BadInputError(f"config.json: {name}={value!r} is not allowed. Allowed: {allowed}.")
    return kind(value)
