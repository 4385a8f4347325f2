"""Routing by a fixed table from token to experts."""

import heapq
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from components.registry import register
from components.router.scores import BALANCE, DEAD_EXPERTS, Gate, expert_load, load_balance
from components.slots import Aux
from components.spec import Site, searchable

KINDS = ("random", "round_robin", "frequency_balanced")


@register("hash", source="DeepSeek-V4 report §2.1 (first layers); Hash Layers, arXiv 2106.04426")
class HashRouter(Gate):
    """A frozen table chooses k distinct experts per token id; learned gate scores still weight them.

    DeepSeek has not published how its table is made. Each layer gets its own, by `table_seed` and layer
    index, whatever seed the model's weights are drawn from.

    Attributes:
        tid2eid: [vocab_size, k] buffer, saved with the model.
        table_balance: of the training text; None where `prepare` was not called while watched.
    """

    diagnostics = BALANCE | {
        "table_max_vio": "`max_vio` of the table on the training text, before any training"
    }
    alarms = (DEAD_EXPERTS,)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `router/hash`."""

        kind: str = searchable("random", choices=KINDS)
        """`random`: k distinct experts at random per token; `round_robin`: token ids in random order dealt
        to experts in turn, so that all experts have equally many ids; `frequency_balanced`: frequent ids
        first, each to the k experts with the fewest tokens so far, as counted in the training text. Until
        `prepare` has brought the counts, all ids count as equally frequent."""
        table_seed: int = 0
        """Another seed draws other tables."""

        def __post_init__(self) -> None:
            if self.kind not in KINDS:
                raise ValueError(f"kind={self.kind!r} is not one of {', '.join(KINDS)}")

    tid2eid: Tensor

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(site)
        dims = site.dims
        self.table_balance: float | None = None
        self.config, self.layer, self.experts = config, site.layer.index, dims.n_routed_experts
        shape = (dims.vocab_size, dims.num_experts_per_tok)
        if self.weight.is_meta:
            table = torch.empty(shape, dtype=torch.int64)
        else:
            table = make_table(config, shape, self.experts, self.layer).to(self.weight.device)
        self.register_buffer("tid2eid", table)

    def forward(
        self, x: Float[Tensor, "b s d"], token_ids: Int[Tensor, "b s"]
    ) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"], Aux]:
        scores = self.scores(x.flatten(0, 1))
        chosen = self.tid2eid[token_ids.flatten()]
        with torch.no_grad():
            aux = load_balance(expert_load(chosen, scores.shape[1]), self.watched)
        if self.table_balance is not None and self.watched:
            aux["diag/table_max_vio"] = torch.tensor(self.table_balance, device=x.device)
        return self.weights(scores, chosen), chosen, aux

    def prepare(self, counts: Callable[[], Int[Tensor, "v"]]) -> None:
        """Make the table anew where it depends on how often each token id occurs in the training text; watched,
        also work out how it will share that text between experts."""
        if self.config.kind == "frequency_balanced":
            shape = (self.tid2eid.shape[0], self.tid2eid.shape[1])
            self.tid2eid.copy_(make_table(self.config, shape, self.experts, self.layer, counts()))
        if self.watched:
            self.table_balance = table_balance(self.tid2eid, counts(), self.experts)


def make_table(
    config: HashRouter.Config,
    shape: tuple[int, int],
    experts: int,
    layer: int,
    counts: Int[Tensor, "v"] | None = None,
) -> Int[Tensor, "v k"]:
    """Experts of every token id in one layer; each row has k distinct entries.

    Args:
        counts: occurrences of each id, for tables that depend on them; None if not known.
    """
    tokens, k = shape
    generator = torch.Generator("cpu").manual_seed(zlib.crc32(f"{config.table_seed}/{layer}".encode()))
    if config.kind == "frequency_balanced":
        counts = torch.zeros(tokens, dtype=torch.int64, device="cpu") if counts is None else counts.cpu()
        return _balanced_table(counts, k, experts, generator)
    if config.kind == "round_robin":
        turn = torch.randperm(tokens, generator=generator, device="cpu")
        return (turn.unsqueeze(1) * k + torch.arange(k, device="cpu")) % experts
    return torch.rand(tokens, experts, generator=generator, device="cpu").topk(k, sorted=False).indices


def table_balance(table: Int[Tensor, "v k"], counts: Int[Tensor, "v"], experts: int) -> float:
    """Excess of the expert that gets most of a text over the mean, relative to it, known before any training."""
    load = torch.zeros(experts, dtype=torch.int64)
    load.index_add_(0, table.flatten().cpu(), counts.cpu().repeat_interleave(table.shape[1]))
    return float(load.max() * experts / load.sum() - 1)


def _balanced_table(
    counts: Int[Tensor, "v"], k: int, experts: int, generator: torch.Generator
) -> Int[Tensor, "v k"]:
    """Ids by falling power of two of their count, in random order within one, each to the k idlest."""
    shuffled = torch.randperm(len(counts), generator=generator, device="cpu")
    # One more than counted, so that ids which never occur are dealt out as well.
    weights = counts + 1
    powers = weights.double().log2().floor()
    order = shuffled[powers[shuffled].argsort(descending=True, stable=True)].tolist()
    ties = torch.randperm(experts, generator=generator, device="cpu").tolist()
    loads = [(0, tie, expert) for expert, tie in enumerate(ties)]
    heapq.heapify(loads)
    table, weight = [[0] * k] * len(order), weights.tolist()
    for token in order:
        idlest = [heapq.heappop(loads) for _ in range(k)]
        table[token] = [expert for _, _, expert in idlest]
        for load, tie, expert in idlest:
            heapq.heappush(loads, (load + weight[token], tie, expert))
    return torch.tensor(table, device="cpu")
