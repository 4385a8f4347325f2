"""Routing by a fixed table from token to experts."""

import zlib
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from components.registry import register
from components.router.scores import Gate, expert_load, max_violation
from components.slots import Aux
from components.spec import Site, searchable

KINDS = ("random", "round_robin")


@register("hash", source="DeepSeek-V4 report §2.1 (first layers); Hash Layers, arXiv 2106.04426")
class HashRouter(Gate):
    """A frozen table chooses k distinct experts per token id; learned gate scores still weight them.

    DeepSeek has not published how its table is made. Each layer gets its own, by `table_seed` and layer
    index, whatever seed the model's weights are drawn from.

    Attributes:
        tid2eid: [vocab_size, k] buffer, saved with the model.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `router/hash`."""

        kind: str = searchable("random", choices=KINDS)
        """`random`: k distinct experts at random per token; `round_robin`: token ids in random order dealt
        to experts in turn, so that all experts have equally many ids."""
        table_seed: int = 0

        def __post_init__(self) -> None:
            if self.kind not in KINDS:
                raise ValueError(f"kind={self.kind!r} is not one of {', '.join(KINDS)}")

    tid2eid: Tensor

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(site)
        dims = site.dims
        shape = (dims.vocab_size, dims.num_experts_per_tok)
        if self.weight.is_meta:
            table = torch.empty(shape, dtype=torch.int64)
        else:
            table = make_table(config, shape, dims.n_routed_experts, site.layer.index).to(self.weight.device)
        self.register_buffer("tid2eid", table)

    def forward(
        self, x: Float[Tensor, "m d"], token_ids: Int[Tensor, "m"]
    ) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"], Aux]:
        scores = self.scores(x)
        chosen = self.tid2eid[token_ids]
        with torch.no_grad():
            load = expert_load(chosen, scores.shape[1])
        return self.weights(scores, chosen), chosen, max_violation(load)


def make_table(
    config: HashRouter.Config, shape: tuple[int, int], experts: int, layer: int
) -> Int[Tensor, "v k"]:
    """Experts of every token id in one layer; each row has k distinct entries."""
    tokens, k = shape
    generator = torch.Generator("cpu").manual_seed(zlib.crc32(f"{config.table_seed}/{layer}".encode()))
    if config.kind == "round_robin":
        turn = torch.randperm(tokens, generator=generator, device="cpu")
        return (turn.unsqueeze(1) * k + torch.arange(k, device="cpu")) % experts
    return torch.rand(tokens, experts, generator=generator, device="cpu").topk(k, sorted=False).indices
