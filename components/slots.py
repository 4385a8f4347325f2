"""The contracts of all slots on one page: abstract bases that every registered component fulfils.

A component is a final class derived from one of these. It nests its own options in a frozen `Config`, is built as
`Component(config, site, **parts)` where `parts` are the built instances of the slots named in `uses`, and declares its
cost without being built. `cost` covers the component itself; the parts it uses are costed by themselves. The one
slot that is no part of a model, `optimizer`, has a base of its own at the end.

Axis letters: b batch, s sequence, d hidden size, n residual streams, h heads, c head size, t compressed entries.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from components.cache import Cache, CannotDecodeError
from components.spec import Alarm, Cost, NoOptions, Site

Aux = dict[str, Tensor]
"""Scalar auxiliary losses (`loss/…`) and diagnostics (`diag/…`), returned and never hidden in a module."""


class Registered(ABC):
    """What the registry holds: one choice for a slot, and its options."""

    slot: ClassVar[str]
    name: ClassVar[str]
    """Name in the registry, which sets it."""
    uses: ClassVar[tuple[str, ...]] = ()
    """Slots whose built instances the constructor takes as keyword arguments of the same names."""

    Config: ClassVar[type] = NoOptions
    diagnostics: ClassVar[Mapping[str, str]] = {}
    """What it returns as `diag/…` while watched, and what each says."""
    alarms: ClassVar[tuple[Alarm, ...]] = ()
    """When these mean that it is broken."""


class Component(nn.Module, Registered):
    """Base of all slots that are parts of a model."""

    row_blocks: Mapping[str, int] = {}
    """How many equal blocks of rows a parameter of this module consists of, each a matrix of its own to an
    optimizer that treats matrices as wholes: `{"gate_up": 2}`; 0 for what is no linear map, such as biases
    per position. What is not named is one matrix, further axes in front count matrices, and vectors are none.
    Modules inside a component declare theirs alike (`components/optimizer/matrices.py`)."""
    wide: tuple[str, ...] = ()
    """Matrices of this module that a cast of the model to half precision leaves in 32 bits, as it leaves all
    vectors (norms, biases, gates, sinks): small updates of them would round away. Inner modules declare theirs."""
    watched: bool = False
    """Whether to return all diagnostics, whatever they cost (`components/watching.py`). What else is returned stays
    the same to the last bit, and no gradient passes through them."""
    causal: ClassVar[bool] = True
    """Whether no output depends on later tokens. An entry for which it does not hold must declare it, and warn."""

    @staticmethod
    @abstractmethod
    def cost(config: Any, site: Site, seq_len: int) -> Cost:
        """Exact cost at `site` for one sequence of `seq_len` tokens, without building anything."""

    @staticmethod
    def check(config: Any, site: Site, seq_len: int) -> None:
        """Raise `ValueError` (key, value, what is allowed) where the component cannot work."""

    @staticmethod
    def warnings(config: Any, site: Site, seq_len: int) -> list[str]:
        """Sentences on settings under which the component does nothing or less than its name promises."""
        return []


class Norm(Component):
    """Normalisation over the last axis. Built as `Norm(config, site, size=...)` because its width varies by place."""

    slot = "norm"

    @abstractmethod
    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]: ...


class PostNorm(Component):
    """What happens to a branch's output before the residual takes it. One instance per branch."""

    slot = "post_norm"

    @abstractmethod
    def forward(self, y: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]: ...


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines of one layer, for positions 0 … length-1."""

    cos: Tensor
    sin: Tensor


ScoreBias = Callable[[Int[Tensor, "n q k"], torch.dtype], Float[Tensor, "n q h k"]]
"""What is added to scores of every head, given how many tokens each key is behind each query, in that precision."""


class Position(Component):
    """How attention learns where a token stands. One instance per layer, because the base depends on the mechanism."""

    slot = "position"

    @abstractmethod
    def rotate(
        self, x: Float[Tensor, "b s ... c"], positions: Int[Tensor, "s"]
    ) -> Float[Tensor, "b s ... c"]:
        """Encode absolute `positions` into queries or keys; rotary channels are the last ones."""

    @abstractmethod
    def unrotate(self, x: Float[Tensor, "b s h c"], positions: Int[Tensor, "s"]) -> Float[Tensor, "b s h c"]:
        """What happens to attention's output where values were rotated with keys; identity where they were not."""

    @property
    def bias(self) -> ScoreBias | None:
        """What attention adds to its scores, for entries that work this way.

        Only attention that `takes_bias` does; an entry that has one refuses others in `check`.
        """
        return None


class Sink(Component):
    """Where attention mass goes that no token deserves."""

    slot = "sink"

    @abstractmethod
    def logits(self) -> Float[Tensor, "h"] | None:
        """One extra logit per head for the softmax denominator, or None."""


class OutputProjection(Component):
    """Heads back to the hidden size."""

    slot = "output_projection"

    @abstractmethod
    def forward(self, heads: Float[Tensor, "b s h c"]) -> Float[Tensor, "b s d"]: ...


class Compressor(Component):
    """A sequence to one entry per complete block of `site.layer.ratio` tokens.

    Built with `width=` channels per entry.
    """

    slot = "compressor"

    @abstractmethod
    def forward(self, x: Float[Tensor, "b s d"], position: Position) -> Float[Tensor, "b t c"]:
        """Entries of all complete blocks, normalised and rotated at each block's first position; t = s // ratio."""

    def step(
        self, x: Float[Tensor, "b s d"], position: Position, cache: Cache | None
    ) -> tuple[Float[Tensor, "b t c"], Cache]:
        """Entries of the blocks that the tokens `x` complete after those of `cache`.

        Raises:
            CannotDecodeError: the entry has no cache.
        """
        raise CannotDecodeError(f"compressor={self.name} cannot decode: it keeps no cache")


EntryMass = Callable[[Bool[Tensor, "#b s t"]], Float[Tensor, "b s t"]]
"""What the layer's real softmax (window, entries and sink together) gives to each entry, summed over heads and
without gradient, if queries saw the entries of the mask. Costs the scores of attention over again."""


class Indexer(Component):
    """Chooses which compressed entries a query attends to. No language-model gradient passes through the choice."""

    slot = "indexer"

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "b s d"],
        query_latent: Float[Tensor, "b s q"],
        visible: Int[Tensor, "*b s"],
        position: Position,
        mass: EntryMass,
    ) -> tuple[Tensor, Aux]:
        """A boolean mask [b, s, t] with at most `site.layer.topk` chosen entries per query, all of them visible.

        Args:
            visible: number of entries that each query may see; 0 where a query does not count.
            mass: what attention would give to entries, for those who learn from it or are judged by it.
        """

    @staticmethod
    def selects(config: Any) -> bool:
        """Whether attention reads less than all visible entries, where there are more than `layer.topk`."""
        return True

    @staticmethod
    def learns(config: Any) -> bool:
        """Whether it chooses and has a loss of its own, so that there is something for `warm_up` to train."""
        return False

    def warm_up(self, on: bool) -> None:
        """Choose all visible entries and learn from all of them, or as configured again. Asked of one that learns."""
        raise NotImplementedError(f"indexer={self.name} learns, but has no warm-up")

    def step(
        self,
        x: Float[Tensor, "b s d"],
        query_latent: Float[Tensor, "b s q"],
        visible: Int[Tensor, "s"],
        position: Position,
        cache: Cache | None,
    ) -> tuple[Bool[Tensor, "#b s t"], Cache]:
        """The choice among all entries so far, for the tokens `x` after those of `cache`.

        Raises:
            CannotDecodeError: the entry has no cache.
        """
        raise CannotDecodeError(f"indexer={self.name} cannot decode: it keeps no cache")


class Attention(Component):
    """Mixes a sequence causally: no output depends on later tokens.

    Packed documents come as rows of their own (`components/documents.py`), so that an entry needs to know
    nothing of them: what it counts from the beginning of a row, it counts from the beginning of a document.
    """

    slot = "attention"
    takes_bias: ClassVar[bool] = False
    """Whether scores include `Position.bias`."""
    reads_all: bool = False
    """Whether `forward` leaves an indexer alone and reads all that it might choose; may be set as training goes on."""

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "b s d"], real: Bool[Tensor, "b s"] | None = None
    ) -> tuple[Float[Tensor, "b s d"], Aux]:
        """Outputs, and auxiliary values that are means over real tokens.

        Args:
            real: False for what fills up rows after shorter documents, to be left out of auxiliary values; no
                output that counts depends on it. None where every token is real.
        """

    def step(
        self, x: Float[Tensor, "b s d"], cache: Cache | None = None
    ) -> tuple[Float[Tensor, "b s d"], Cache]:
        """What `forward` gives for the tokens `x` after those of `cache`, and the cache with them in it.

        Any number of tokens at a time; no cache is the beginning of a sequence. What is kept for a context
        has exactly the bytes that `cost` says.

        Raises:
            CannotDecodeError: the entry has no cache.
        """
        raise CannotDecodeError(f"attention={self.name} cannot decode: it keeps no cache")

    @classmethod
    def default_layer(cls) -> Mapping[str, Any]:
        """Fields of `Layer` that a schedule token fills in when it names only the mechanism (`overlap`, `topk`, …)."""
        return {}


class Router(Component):
    """Chooses experts and their weights."""

    slot = "router"

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "b s d"], token_ids: Int[Tensor, "b s"]
    ) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"], Aux]:
        """Weights and expert indices of up to k experts of each of m = b s tokens.

        `n_routed_experts` stands for no expert, where tokens do not all have equally many.
        """


class FFN(Component):
    """Mixes channels. Every entry receives the token ids; most ignore them."""

    slot = "ffn"

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "b s d"], token_ids: Int[Tensor, "b s"]
    ) -> tuple[Float[Tensor, "b s d"], Aux]: ...


class Collapse(nn.Module, ABC):
    """Residual state back to one hidden vector per token, before the final norm."""

    @abstractmethod
    def forward(self, state: Float[Tensor, "b s n d"]) -> Float[Tensor, "b s d"]: ...


class Residual(Component):
    """What a layer reads from and writes to. One instance per site, two sites per layer (attention, then FFN).

    The state always has a stream axis; a plain residual has one stream, and from layer to layer there may be more
    of them. `cost` is that of one of the two sites, or their mean where they differ. The carry that `read` returns
    goes to `write`, never onto `self`, so that activation checkpointing can run `read` again.
    """

    slot = "residual"

    @staticmethod
    @abstractmethod
    def streams(config: Any, layers: int = 0) -> int:
        """Number of residual streams n after that many layers."""

    @staticmethod
    @abstractmethod
    def collapse(config: Any, site: Site) -> Collapse:
        """Build the module that ends the stack; `site` is the last layer's."""

    @staticmethod
    @abstractmethod
    def collapse_cost(config: Any, site: Site, seq_len: int) -> Cost:
        """Cost of the module that `collapse` builds."""

    @abstractmethod
    def read(self, state: Float[Tensor, "b s n d"]) -> tuple[Float[Tensor, "b s d"], Any]:
        """The branch's input and a carry for `write`."""

    @abstractmethod
    def write(
        self, state: Float[Tensor, "b s n d"], y: Float[Tensor, "b s d"], carry: Any
    ) -> Float[Tensor, "b s n d"]:
        """The next state, given the branch's output, which it is linear in together with `state`."""

    def diagnose(self, state: Float[Tensor, "b s n d"], carry: Any) -> Aux:
        """Diagnostics of one site, asked for while `watched`, beside those of all streams (`residual/watch.py`).

        Args:
            state: what `read` was given.
            carry: what it returned.
        """
        return {}


class MTP(Component):
    """How a layer that predicts one token further joins the stack before it with the token that it now knows.

    Only the joining: block, collapse and norm after it are built by the model from its other slots; embedding
    and head are the model's own, used again. `Config` has `weight` and `decay_weight`, the coefficients of the
    loss before and while the learning rate decays.
    """

    slot = "mtp"

    @abstractmethod
    def forward(
        self,
        state: Float[Tensor, "b s n d"],
        hidden: Float[Tensor, "b s d"],
        embedded: Float[Tensor, "b s d"],
    ) -> Float[Tensor, "b s n d"]:
        """The residual state in which the block starts.

        Args:
            state: what the last layer, or the prediction layer before this one, left.
            hidden: the same, collapsed.
            embedded: embeddings of the tokens that follow those that `state` has seen.
        """

    @staticmethod
    @abstractmethod
    def cost(config: Any, site: Site, seq_len: int, streams: int = 1) -> Cost:
        """Cost of the joining, with n = `streams` residual streams."""


class Optimizer(Registered):
    """How weights follow from their gradients. Chosen once per run, and no part of the model."""

    slot = "optimizer"

    @staticmethod
    @abstractmethod
    def build(config: Any, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """One optimizer over every trainable parameter of `model`.

        What it keeps between steps is tensors and numbers in `state`, and numbers in `param_groups`.

        Args:
            lr: peak learning rate. What a group has as `lr` is the peak of that group.
        """

    @staticmethod
    def flops_per_step(config: Any, model: nn.Module) -> int:
        """FLOPs of its own matrix products in one step, from shapes alone: `model` may be on "meta"."""
        return 0
