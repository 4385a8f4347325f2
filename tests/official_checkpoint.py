"""Writes an official DeepSeek-V4 checkpoint by hand: formats from their definitions, names and shapes from the report.

Nothing of the program under test is used, and no library for the files: a safetensors file is the length of a JSON
header in eight bytes, the header, and bytes.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "head_dim": 48,
    "qk_rope_head_dim": 16,
    "q_lora_rank": 136,
    "o_groups": 2,
    "o_lora_rank": 24,
    "sliding_window": 6,
    "index_n_heads": 16,
    "index_head_dim": 32,
    "index_topk": 2,
    "moe_intermediate_size": 32,
    "n_routed_experts": 3,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "num_hash_layers": 1,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 4096,
}
CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    **SIZES,
    "num_key_value_heads": 1,
    "compress_ratios": [0, 4, 128, 4, 0],
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "swiglu_limit": 10.0,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "original_max_position_embeddings": 256,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
    "expert_dtype": "fp4",
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
    },
}


def e4m3(code: int) -> float:
    """FP8: one sign, four exponent bits of bias 7, three of mantissa; no infinities, 0x7f is no number."""
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if sign else size


def e2m1(code: int) -> float:
    """FP4: one sign, two exponent bits of bias 1, one of mantissa."""
    sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
    size = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return -size if sign else size


FP8 = np.array([e4m3(code) for code in range(256)])
FP4 = np.array([e2m1(code) for code in range(16)])

Entry = tuple[str, list[int], bytes]
"""Number format as safetensors spells it, shape, bytes."""


class Maker:
    """Draws tensors in the format that their kind has, and knows their exact values."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.entries: dict[str, Entry] = {}
        self.values: dict[str, np.ndarray] = {}

    def fp8(self, name: str, rows: int, columns: int) -> None:
        """Any of the 254 numbers, under block scales of 2^-12 to 2^-6."""
        codes = self.random.choice([c for c in range(256) if c & 127 != 127], (rows, columns)).astype(
            np.uint8
        )
        scales = self.random.integers(115, 122, (-(-rows // 128), -(-columns // 128))).astype(np.uint8)
        values = np.empty((rows, columns))
        for i in range(rows):
            for j in range(columns):
                values[i, j] = FP8[codes[i, j]] * 2.0 ** (int(scales[i // 128, j // 128]) - 127)
        self._quantised(name, "F8_E4M3", codes, scales, values)

    def fp4(self, name: str, rows: int, columns: int) -> None:
        """Two to a byte, the one of the lower column in the low four bits, a scale for 32 columns."""
        codes = self.random.integers(0, 16, (rows, columns)).astype(np.uint8)
        scales = self.random.integers(120, 126, (rows, columns // 32)).astype(np.uint8)
        values = FP4[codes] * 2.0 ** (scales[:, np.arange(columns) // 32].astype(int) - 127)
        packed = np.empty((rows, columns // 2), np.uint8)
        for j in range(columns // 2):
            packed[:, j] = codes[:, 2 * j] + 16 * codes[:, 2 * j + 1]
        self._quantised(name, "I8", packed, scales, values)

    def bf16(self, name: str, *shape: int, mean: float = 0.0) -> None:
        """The upper half of FP32."""
        bits = (self._normal(shape) * 0.3 + mean).astype("<f4").view("<u4") >> 16
        self.entries[name] = ("BF16", list(shape), bits.astype("<u2").tobytes())
        self.values[name] = (bits.astype("<u4") << 16).view("<f4").astype(float)

    def fp32(self, name: str, *shape: int) -> None:
        """As it is."""
        numbers = (self._normal(shape) * 0.3).astype("<f4")
        self.entries[name] = ("F32", list(shape), numbers.tobytes())
        self.values[name] = numbers.astype(float)

    def table(self, name: str, tokens: int, k: int, experts: int) -> None:
        """Distinct experts of every token."""
        rows = np.array([self.random.permutation(experts)[:k] for _ in range(tokens)]).astype("<i8")
        self.entries[name] = ("I64", [tokens, k], rows.tobytes())
        self.values[name] = rows.astype(float)

    def _normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.random.standard_normal(shape)

    def _quantised(
        self, name: str, kind: str, codes: np.ndarray, scales: np.ndarray, values: np.ndarray
    ) -> None:
        self.entries[name] = (kind, list(codes.shape), codes.tobytes())
        self.entries[name.removesuffix("weight") + "scale"] = (
            "F8_E8M0",
            list(scales.shape),
            scales.tobytes(),
        )
        self.values[name] = values


def make(config: dict[str, Any] = CONFIG) -> Maker:
    """Every tensor of an official checkpoint."""
    m, c = Maker(), config
    d, v, n = c["hidden_size"], c["vocab_size"], c["hc_mult"]
    m.bf16("embed.weight", v, d)
    m.bf16("head.weight", v, d)
    m.bf16("norm.weight", d, mean=1.0)
    _collapse(m, "hc_head", n, d)
    for i in range(c["num_hidden_layers"]):
        _layer(m, c, f"layers.{i}", c["compress_ratios"][i], hashed=i < c["num_hash_layers"])
    for i in range(c["num_nextn_predict_layers"]):
        _layer(m, c, f"mtp.{i}", 0, hashed=False)
        for name in ("enorm", "hnorm", "norm"):
            m.bf16(f"mtp.{i}.{name}.weight", d, mean=1.0)
        for name in ("e_proj", "h_proj"):
            m.fp8(f"mtp.{i}.{name}.weight", d, d)
        _collapse(m, f"mtp.{i}.hc_head", n, d)
    return m


def _collapse(m: Maker, prefix: str, n: int, d: int) -> None:
    m.fp32(f"{prefix}_fn", n, n * d)
    m.fp32(f"{prefix}_base", n)
    m.fp32(f"{prefix}_scale", 1)


def _layer(m: Maker, c: dict[str, Any], layer: str, ratio: int, hashed: bool) -> None:
    d, n, heads, head = c["hidden_size"], c["hc_mult"], c["num_attention_heads"], c["head_dim"]
    latent, groups, rank = c["q_lora_rank"], c["o_groups"], c["o_lora_rank"]
    for site in ("attn", "ffn"):
        m.bf16(f"{layer}.{site}_norm.weight", d, mean=1.0)
        m.fp32(f"{layer}.hc_{site}_fn", (2 + n) * n, n * d)
        m.fp32(f"{layer}.hc_{site}_base", (2 + n) * n)
        m.fp32(f"{layer}.hc_{site}_scale", 3)
    attn = f"{layer}.attn"
    m.fp32(f"{attn}.attn_sink", heads)
    m.fp8(f"{attn}.wq_a.weight", latent, d)
    m.bf16(f"{attn}.q_norm.weight", latent, mean=1.0)
    m.fp8(f"{attn}.wq_b.weight", heads * head, latent)
    m.fp8(f"{attn}.wkv.weight", head, d)
    m.bf16(f"{attn}.kv_norm.weight", head, mean=1.0)
    m.fp8(f"{attn}.wo_a.weight", groups * rank, heads * head // groups)
    m.fp8(f"{attn}.wo_b.weight", d, groups * rank)
    if ratio:
        _compressor(m, f"{attn}.compressor", d, head, ratio)
    if ratio == 4:
        width = c["index_head_dim"]
        m.fp8(f"{attn}.indexer.wq_b.weight", c["index_n_heads"] * width, latent)
        m.bf16(f"{attn}.indexer.weights_proj.weight", c["index_n_heads"], d)
        _compressor(m, f"{attn}.indexer.compressor", d, width, ratio)
    ffn, f, experts = f"{layer}.ffn", c["moe_intermediate_size"], c["n_routed_experts"]
    m.bf16(f"{ffn}.gate.weight", experts, d)
    if hashed:
        m.table(f"{ffn}.gate.tid2eid", c["vocab_size"], c["num_experts_per_tok"], experts)
    else:
        m.fp32(f"{ffn}.gate.bias", experts)
    for w, rows, columns in (("w1", f, d), ("w2", d, f), ("w3", f, d)):
        m.fp8(f"{ffn}.shared_experts.{w}.weight", rows, columns)
        for e in range(experts):
            m.fp4(f"{ffn}.experts.{e}.{w}.weight", rows, columns)


def _compressor(m: Maker, prefix: str, d: int, width: int, ratio: int) -> None:
    rows = 2 * width if ratio == 4 else width
    m.bf16(f"{prefix}.wkv.weight", rows, d)
    m.bf16(f"{prefix}.wgate.weight", rows, d)
    m.fp32(f"{prefix}.ape", ratio, rows)
    m.bf16(f"{prefix}.norm.weight", width, mean=1.0)


def write(folder: Path, entries: dict[str, Entry], config: dict[str, Any] = CONFIG, files: int = 3) -> None:
    """The folder: configuration, files, index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names, listed = list(entries), {}
    for i in range(files):
        file = f"model-{i + 1:05d}-of-{files:05d}.safetensors"
        held = names[i * len(names) // files : (i + 1) * len(names) // files]
        (folder / file).write_bytes(b"".join(_file({name: entries[name] for name in held})))
        listed |= dict.fromkeys(held, file)
    index = {"metadata": {"total_size": sum(len(e[2]) for e in entries.values())}, "weight_map": listed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _file(entries: dict[str, Entry]) -> Iterator[bytes]:
    header, at = {}, 0
    for name, (kind, shape, data) in entries.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    yield from (data for _, _, data in entries.values())
