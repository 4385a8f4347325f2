"""What the axes of every tensor of DeepSeek-V4 run over, by name: what has to be cut alike has one name."""

from dataclasses import dataclass

from ablate.interop.layout import Place
from ablate.variant import Variant

HIDDEN = "hidden"
"""The only axis that all layers share; every other name means each layer by itself."""
UNCUT = "*"
"""Name of all axes that are never cut."""


@dataclass(frozen=True)
class Axes:
    """Sizes by name, of one model."""

    sizes: dict[str, int]

    @classmethod
    def of(cls, variant: Variant) -> "Axes":
        """Those of a variant.

        `heads` counts within a group, `channels` within a head, `half` the two of an overlapping compressor, `latent`
        is q_lora_rank, `ranks` o_lora_rank, `ichannels` and `iheads` the indexer's, `width` an expert's inner size.
        """
        dims = variant.dims
        return cls(
            {
                "vocab": dims.vocab_size,
                HIDDEN: dims.hidden_size,
                "streams": variant.streams(),
                "groups": dims.o_groups,
                "heads": dims.num_attention_heads // dims.o_groups,
                "channels": dims.head_dim,
                "latent": dims.q_lora_rank,
                "ranks": dims.o_lora_rank,
                "iheads": dims.index_n_heads,
                "ichannels": dims.index_head_dim,
                "experts": dims.n_routed_experts,
                "width": dims.moe_intermediate_size,
                "k": dims.num_experts_per_tok,
            }
        )

    def names(self, place: Place, index: int) -> list[str]:
        """Names of the axes of a piece, once it is unfolded to one axis per name.

        An expert's inner axis is its own: `width/3`, of the shared one `width/shared`.
        """
        name = place.ours.split(".", 2)[-1].removeprefix("block.") if "." in place.ours else place.ours
        if place.ours.startswith(("collapse", "norm")):
            name = place.ours
        name = name.replace("attention_residual", "residual").replace("ffn_residual", "residual")
        name = name.replace("attention_norm", "norm").replace("ffn_norm", "norm")
        owner = (
            "shared"
            if ".shared." in place.ours
            else str(index * self.sizes["experts"] // len(place.official))
        )
        return [f"width/{owner}" if axis == "width" else axis for axis in _AXES[name].split()]

    def shape(self, names: list[str], shape: tuple[int, ...]) -> list[int]:
        """Sizes of a piece's unfolded axes; what is not known by name is what is left."""
        known = [self.sizes.get(name.partition("/")[0], 0) for name in names]
        if known.count(0) == 0:
            return known
        total = 1
        for size in shape:
            total *= size
        for size in known:
            total //= size or 1
        return [size or total for size in known]


_AXES = {
    "embedding": "vocab hidden",
    "head": "vocab hidden",
    "norm.weight": "hidden",
    "collapse.fn": "* streams hidden",
    "collapse.base": "*",
    "collapse.scale": "*",
    "residual.fn": "* streams hidden",
    "residual.base": "*",
    "residual.scale": "*",
    "join.enorm": "hidden",
    "join.hnorm": "hidden",
    "join.e_proj": "hidden hidden",
    "join.h_proj": "hidden hidden",
    "attention.q_a": "latent hidden",
    "attention.q_a_norm": "latent",
    "attention.q_b": "groups heads channels latent",
    "attention.kv": "channels hidden",
    "attention.kv_norm": "channels",
    "attention.sink.sinks": "groups heads",
    "attention.output_projection.a": "groups ranks heads channels",
    "attention.output_projection.b": "hidden groups ranks",
    "attention.compressor.kv": "* channels hidden",
    "attention.compressor.gate": "* channels hidden",
    "attention.compressor.ape": "* channels",
    "attention.compressor.norm": "channels",
    "attention.indexer.q_b": "iheads ichannels latent",
    "attention.indexer.weights": "iheads hidden",
    "attention.indexer.compressor.kv": "* ichannels hidden",
    "attention.indexer.compressor.gate": "* ichannels hidden",
    "attention.indexer.compressor.ape": "* ichannels",
    "attention.indexer.compressor.norm": "ichannels",
    "ffn.router.weight": "experts hidden",
    "ffn.router.e_score_correction_bias": "experts",
    "ffn.router.tid2eid": "vocab k",
    "ffn.shared.gate_up": "width hidden",
    "ffn.shared.down": "hidden width",
    "ffn.gate_up": "width hidden",
    "ffn.down": "hidden width",
}
"""Of a piece, by what follows the layer in the name of its tensor."""
