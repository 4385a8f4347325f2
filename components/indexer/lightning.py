"""DeepSeek's lightning indexer: cheap scores choose the compressed entries that attention reads."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from components import native
from components.attention.core import Blocks
from components.attention.pairs import entry_pairs
from components.cache import Cache, appended, length, part
from components.compressor.gated import Gated
from components.indexer.dense import unselected_cost
from components.indexer.teaching import CHOICE, choice_quality, divergence
from components.indexer.topk import check_topk, topk_warnings
from components.native import indexer as fused
from components.registry import register
from components.slots import Aux, EntryMass, Indexer, Position
from components.spec import Alarm, Cost, NoOptions, Site, searchable

STAGES = ("none", "dense", "sparse")


@register(
    "lightning", source="DeepSeek-V3.2, arXiv 2512.02556; DeepSeek-V4 report §2.3.1 and inference/model.py"
)
class Lightning(Indexer):
    """Top-k of `sum_h w_h ReLU(q_h . k)` over entries of its own small compressor.

    `q = rotate(latent q_b^T)` in H = `index_n_heads` heads of c = `index_head_dim`;
    `w = x weights^T / sqrt(c H)` of either sign; keys `k` by a gated compressor of width c over the same
    blocks. The choice is hard: no gradient of the language-model loss reaches any of these tensors. Of equal
    scores the earliest entry goes first. Where there are not more entries than `layer.topk`, all visible ones
    are chosen.

    It learns from `loss_weight` times the mean, over queries with a candidate, of `KL(p || softmax(scores))`
    over candidates, where p is what the layer's real softmax gives them, summed over heads and normalised to
    one. Inputs are detached, so that this loss moves no other tensor. Watched, it reports how its choice compares
    with the best one, for queries that see more than `layer.topk`.

    Attributes:
        q_b: [H*c, q_lora_rank].
        weights: [H, d].
        stage: `train` of the options, `dense` in a warm-up; may be set as training goes on.
    """

    diagnostics = CHOICE | {"indexer_kl": "divergence of its scores from what attention reads"}
    alarms = (
        Alarm(
            metric="indexer_skill",
            below=0.1,
            why="the indexer chooses hardly better than at random: nothing has trained it",
            source="methodology §E: recall near chance; no gradient of the language model reaches the choice",
        ),
    )

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `indexer/lightning`."""

        train: str = searchable("sparse", choices=STAGES)
        """`dense`: attention reads all visible entries, and all are candidates; `sparse`: attention reads the
        choice, and the chosen are candidates; `none`: no loss, the choice stays as random as it starts."""
        loss_weight: float = searchable(0.01, low=1e-3, high=1.0, log=True)
        """Small, because optimizers here are blind to a gradient's scale, but clipping by the norm of all
        gradients is not."""

        def __post_init__(self) -> None:
            if self.train not in STAGES:
                raise ValueError(f"train={self.train!r} is not one of {', '.join(STAGES)}")
            if not self.loss_weight > 0:
                raise ValueError(f"loss_weight={self.loss_weight} must be positive; train=none means no loss")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__()
        dims, layer = site.dims, site.layer
        self.stage = self.trained = config.train
        self.loss_weight = config.loss_weight
        self.ratio, self.topk, self.heads = layer.ratio, layer.topk, dims.index_n_heads
        std, rows = dims.initializer_range, dims.index_n_heads * dims.index_head_dim
        self.q_b = nn.Parameter(torch.empty(rows, dims.q_lora_rank).normal_(0.0, std))
        self.weights = nn.Parameter(torch.empty(dims.index_n_heads, dims.hidden_size).normal_(0.0, std))
        self.compressor = Gated(NoOptions(), site, width=dims.index_head_dim)
        self.scale = rows**-0.5

    def forward(
        self,
        x: Float[Tensor, "b s d"],
        query_latent: Float[Tensor, "b s q"],
        visible: Int[Tensor, "*b s"],
        position: Position,
        mass: EntryMass,
    ) -> tuple[Bool[Tensor, "b s t"], Aux]:
        entries, learns = x.shape[1] // self.ratio, self.stage != "none"
        seen = torch.arange(entries, device=x.device) < visible.unsqueeze(-1)
        everything = seen.expand(x.shape[0], -1, -1)
        if entries == 0 or (entries <= self.topk and not learns):
            return everything, {}
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            scores = self.scores(x.detach(), query_latent.detach(), position)
        best = everything
        if entries > self.topk:
            best = highest(scores.detach().masked_fill(~seen, -torch.inf), self.topk) & seen
        chosen = everything if self.stage == "dense" else best
        aux: Aux = {}
        if learns:
            loss = divergence(scores, mass(chosen), chosen)
            aux |= {"loss/indexer": self.loss_weight * loss, "diag/indexer_kl": loss.detach()}
        if self.watched and entries > self.topk:
            aux |= choice_quality(mass(everything), best, visible, self.topk)
        return chosen, aux

    @staticmethod
    def selects(config: Config) -> bool:
        return config.train != "dense"

    @staticmethod
    def learns(config: Config) -> bool:
        return config.train == "sparse"

    def warm_up(self, on: bool) -> None:
        self.stage = "dense" if on else self.trained

    def scores(
        self, x: Float[Tensor, "b s d"], query_latent: Float[Tensor, "b s q"], position: Position
    ) -> Float[Tensor, "b s t"]:
        """Score of every entry for every query, entries a query must not see included."""
        keys, positions = self.compressor(x, position), torch.arange(x.shape[1], device=x.device)
        return self._compare(x, query_latent, keys, position, positions)

    def _compare(
        self,
        x: Float[Tensor, "b s d"],
        query_latent: Float[Tensor, "b s q"],
        keys: Float[Tensor, "b t c"],
        position: Position,
        positions: Int[Tensor, "s"],
    ) -> Float[Tensor, "b s t"]:
        queries = F.linear(query_latent, self.q_b).unflatten(-1, (self.heads, -1))
        queries = position.rotate(queries, positions)
        weights = F.linear(x, self.weights) * self.scale
        products = (queries.flatten(1, 2) @ keys.transpose(1, 2)).unflatten(1, (-1, self.heads))
        if native.takes(products, weights):
            scores = fused.index_scores(products.flatten(0, 1), weights.flatten(0, 1))
            return scores.unflatten(0, weights.shape[:2])
        return (products.relu() * weights.unsqueeze(-1)).sum(2)

    @torch.no_grad()
    def step(
        self,
        x: Float[Tensor, "b s d"],
        query_latent: Float[Tensor, "b s q"],
        visible: Int[Tensor, "s"],
        position: Position,
        cache: Cache | None,
    ) -> tuple[Bool[Tensor, "#b s t"], Cache]:
        """The choice of the tokens `x`. Keys are kept from the first entry on, even while all are chosen."""
        new, pooling = self.compressor.step(x, position, part(cache, "compressor"))
        keys = appended(cache, "keys", new)
        after = Cache(pooling.length, kept={"keys": keys}, parts={"compressor": pooling})
        seen = torch.arange(keys.shape[1], device=x.device) < visible.unsqueeze(-1)
        if self.stage == "dense" or keys.shape[1] <= self.topk:
            return seen.unsqueeze(0), after
        positions = torch.arange(length(cache), after.length, device=x.device)
        scores = self._compare(x, query_latent, keys, position, positions)
        return highest(scores.masked_fill(~seen, -torch.inf), self.topk) & seen, after

    @staticmethod
    def cost(config: Config, site: Site, seq_len: int) -> Cost:
        """`2 (4 d c + q H c + d H)` per token with overlap, `2 H c` per visible pair.

        Trained, projections cost twice their forward, because their inputs are detached, and scores three
        times. Kernels then also run the scores of attention once more, for the teacher.
        """
        dims, layer = site.dims, site.layer
        compressor = Gated.cost(NoOptions(), site, seq_len, dims.index_head_dim)
        width, entries = dims.index_n_heads * dims.index_head_dim, seq_len // layer.ratio
        own = width * dims.q_lora_rank + dims.index_n_heads * dims.hidden_size
        projections = compressor.flops + 2 * own * seq_len
        scores = 2 * width * entry_pairs(seq_len, layer.ratio)
        kernels = compressor.kernel_flops + 2 * own * seq_len + 2 * width * seq_len * entries
        cost = Cost(
            params=compressor.params + own,
            active_params=compressor.params + own,
            kv_bytes=2 * dims.index_head_dim * entries,
            decode_flops=compressor.decode_flops + 2 * own + 2 * width * entries,
        )
        if config.train == "none":
            runs = entries > layer.topk
            return cost + Cost(frozen_flops=projections + scores, kernel_flops=runs * kernels)
        blocks = Blocks.best(seq_len, dims.sliding_window)
        teacher_pairs = blocks.pairs + blocks.count * blocks.size * entries
        teacher = 2 * dims.num_attention_heads * dims.head_dim * teacher_pairs
        cost += Cost(
            flops=scores, detached_flops=projections, kernel_flops=bool(entries) * (kernels + teacher)
        )
        return cost + unselected_cost(site, seq_len) if config.train == "dense" else cost

    @staticmethod
    def check(config: Config, site: Site, seq_len: int) -> None:
        dims = site.dims
        for key in ("index_n_heads", "index_head_dim"):
            if getattr(dims, key) < 1:
                raise ValueError(f"{key}={getattr(dims, key)} must be at least 1")
        if dims.index_head_dim % 2 or dims.index_head_dim < dims.qk_rope_head_dim:
            raise ValueError(
                f"index_head_dim={dims.index_head_dim} must be even and at least "
                f"qk_rope_head_dim={dims.qk_rope_head_dim}, because its last channels rotate in pairs"
            )
        check_topk(site)

    @staticmethod
    def warnings(config: Config, site: Site, seq_len: int) -> list[str]:
        idle = topk_warnings(site, seq_len)
        if idle:
            return idle
        if config.train == "none":
            return ["train=none: nothing trains the indexer, and its choice stays as random as it starts"]
        if config.train == "dense":
            return [
                f"train=dense: attention reads all visible entries, not the index_topk={site.layer.topk} best"
            ]
        return []


def highest(scores: Float[Tensor, "... t"], count: int) -> Bool[Tensor, "... t"]:
    """Mask of the `count` highest scores along the last axis; of equal ones the first."""
    if native.takes(scores):
        return fused.highest(scores, count)
    least = scores.topk(count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, equal = scores > least, scores == least
    room = count - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))
