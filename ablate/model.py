"""The language model that a variant describes, assembled from components."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ablate.prediction import Prediction, PredictionLayer
from ablate.variant import Variant
from components.cache import Cache, CannotDecodeError
from components.documents import Documents
from components.functional import cross_entropy
from components.residual.watch import Streams
from components.slots import FFN, Attention, Aux, Component, Norm, PostNorm, Residual
from components.spec import Layer, Site

T = TypeVar("T")


@dataclass(frozen=True)
class Output:
    """What a forward pass returns.

    Attributes:
        logits: [b, s, v].
        loss: mean nats per token where labels were given.
        aux: auxiliary losses `loss/layers.3/…` and `loss/mtp/…`, weighted as they add to the loss, and
            diagnostics `diag/layers.3/…`.
    """

    logits: Float[Tensor, "b s v"]
    loss: Float[Tensor, ""] | None
    aux: Aux


class Block(nn.Module):
    """One layer: attention, then feed-forward, each reading from and writing to the residual state."""

    def __init__(self, variant: Variant, layer: Layer, name: str) -> None:
        super().__init__()
        self.name = name
        self.attention_residual = cast(Residual, variant.part("residual", layer).build())
        self.attention_norm = cast(Norm, variant.part("norm", layer).build())
        self.attention = cast(Attention, variant.part("attention", layer).build())
        self.attention_post_norm = cast(PostNorm, variant.part("post_norm", layer).build())
        self.ffn_residual = cast(Residual, variant.part("residual", layer).build())
        self.ffn_norm = cast(Norm, variant.part("norm", layer).build())
        self.ffn = cast(FFN, variant.part("ffn", layer).build())
        self.ffn_post_norm = cast(PostNorm, variant.part("post_norm", layer).build())

    def forward(
        self,
        state: Float[Tensor, "b s n d"],
        token_ids: Int[Tensor, "b s"],
        documents: Documents | None = None,
        streams: Streams | None = None,
    ) -> tuple[Float[Tensor, "b s n d"], Aux]:
        """The next residual state, and what the branches returned beside it.

        Args:
            streams: what became of the streams before this layer, where they are watched.
        """
        attention = self.attention if documents is None else partial(documents.each, self.attention)
        state, attention_aux, aux = self._sites(state, token_ids, attention, streams)
        aux = self._named("attention", attention_aux) | aux
        return state, aux | self._named("residual", streams.diagnose(state)) if streams else aux

    def step(
        self, state: Float[Tensor, "b s n d"], token_ids: Int[Tensor, "b s"], cache: Cache | None
    ) -> tuple[Float[Tensor, "b s n d"], Cache]:
        """The layer for tokens after those of `cache`, and the cache with them in it."""
        state, cache, _ = self._sites(state, token_ids, lambda x: self.attention.step(x, cache))
        return state, cache

    def _sites(
        self,
        state: Float[Tensor, "b s n d"],
        token_ids: Int[Tensor, "b s"],
        attention: Callable[[Tensor], tuple[Tensor, T]],
        streams: Streams | None = None,
    ) -> tuple[Float[Tensor, "b s n d"], T, Aux]:
        x, carry = self.attention_residual.read(state)
        y, beside = attention(self.attention_norm(x))
        seen = self._watch("attention", state, y, carry, streams)
        state = self.attention_residual.write(state, self.attention_post_norm(y), carry)
        x, carry = self.ffn_residual.read(state)
        y, aux = self.ffn(self.ffn_norm(x), token_ids)
        seen |= self._watch("ffn", state, y, carry, streams)
        state = self.ffn_residual.write(state, self.ffn_post_norm(y), carry)
        return state, beside, self._named("ffn", aux) | seen

    def _watch(self, branch: str, state: Tensor, y: Tensor, carry: Any, streams: Streams | None) -> Aux:
        """Diagnostics of one of the two sites, where they are asked for: its own, and of the branch's output."""
        residual: Residual = getattr(self, f"{branch}_residual")
        if not residual.watched:
            return {}
        if streams is not None:
            streams.pass_through(residual, carry)
        own = residual.diagnose(state, carry)
        size = y.detach().float()
        output = {"diag/output_rms": size.square().mean().sqrt(), "diag/output_max": size.abs().amax()}
        return self._named(f"{branch}_residual", own) | self._named(branch, output)

    def _named(self, branch: str, aux: Aux) -> Aux:
        """`diag/max_vio` becomes `diag/layers.3/ffn/max_vio`."""
        parts = ((key.partition("/"), value) for key, value in aux.items())
        return {f"{kind}/{self.name}/{branch}/{rest}": value for (kind, _, rest), value in parts}


class LanguageModel(nn.Module):
    """Embedding, n equal residual streams, the layers, collapse, final norm, and a head of its own weights.

    Construction draws weights from the global generator; `initialise` makes them a function of a seed.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        dims, last = variant.dims, variant.layers[-1]
        self.streams = variant.streams()
        shape, std = (dims.vocab_size, dims.hidden_size), dims.initializer_range
        self.embedding = nn.Parameter(torch.empty(shape).normal_(0.0, std))
        self.layers = nn.ModuleList(
            Block(variant, layer, f"layers.{layer.index}") for layer in variant.layers
        )
        self.collapse = variant.residual.collapse(variant.config("residual")[1], Site(dims=dims, layer=last))
        self.norm = cast(Norm, variant.part("norm", last).build())
        self.head = nn.Parameter(torch.empty(shape).normal_(0.0, std))
        self.row_blocks = {"embedding": 0, "head": 0}
        self.mtp = Prediction(
            variant,
            [
                PredictionLayer(variant, layer, Block(variant, layer, f"mtp/{i}"))
                for i, layer in enumerate(variant.prediction_layers)
            ],
        )
        modules = [module for module in self.modules() if module is not self]
        self.watched = False
        self._stepping: list[Any] = [m for m in modules if callable(getattr(m, "after_step", None))]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Casts and moves everything, except that what needs 32 bits only moves (`Component.wide`)."""
        wide = [
            (module, name, tensor.data)
            for module in self.modules()
            for name, tensor in (
                *module.named_parameters(recurse=False),
                *module.named_buffers(recurse=False),
            )
            if tensor.dtype == torch.float32 and _needs_32_bits(module, name, tensor)
        ]
        super()._apply(fn, recurse)
        for module, name, before in wide:
            now = getattr(module, name)
            if now.dtype.itemsize < before.dtype.itemsize:
                now.data = before.to(now.device)
        return self

    def forward(
        self,
        input_ids: Int[Tensor, "b s"],
        labels: Int[Tensor, "b s"] | None = None,
        doc_ids: Int[Tensor, "b s"] | None = None,
    ) -> Output:
        """Logits for every position. Prediction layers run where there are labels.

        Args:
            labels: the token that each position should predict (inputs shifted by one already); positions
                with -100 are left out of the loss, and so should be the last ones of packed documents.
            doc_ids: which document each token belongs to, never decreasing along a sequence. Each document
                then gets the logits that it would get alone. Without ids a sequence is one document.

        Raises:
            ValueError: ids decrease along a sequence.
        """
        documents = None if doc_ids is None else Documents.of(doc_ids)
        state = self._embed(input_ids)
        aux: Aux = {}
        streams = Streams(state) if self.watched and self.streams > 1 else None
        for layer in self.layers:
            state, more = layer(state, input_ids, documents, streams)
            aux |= more
        hidden = self.collapse(state)
        logits = F.linear(self.norm(hidden), self.head)
        loss = None
        if labels is not None:
            loss = cross_entropy(logits.flatten(0, 1), labels.flatten())
            further, more = self.mtp(state, hidden, input_ids, self.embedding, self.head, doc_ids)
            aux |= more | self.mtp.losses(further, logits, labels)
        return Output(logits, loss, _mean_indexer_loss(aux))

    @torch.no_grad()
    def decode(
        self, input_ids: Int[Tensor, "b s"], caches: Sequence[Cache] | None = None
    ) -> tuple[Float[Tensor, "b s v"], tuple[Cache, ...]]:
        """Logits for tokens after those of `caches` (from the beginning without), and the next caches.

        Any split of a sequence into calls gives the logits of one forward pass.

        Raises:
            CannotDecodeError: a component keeps no cache, or is not causal.
        """
        for module in self.modules():
            if isinstance(module, Component) and not module.causal:
                raise CannotDecodeError(f"{module.slot}={module.name} cannot decode: it is not causal")
        state = self._embed(input_ids)
        after: list[Cache] = []
        for layer, cache in zip(self.layers, caches or [None] * len(self.layers), strict=True):
            state, cache = cast(Block, layer).step(state, input_ids, cache)
            after.append(cache)
        return self._logits(state), tuple(after)

    def _embed(self, input_ids: Int[Tensor, "b s"]) -> Float[Tensor, "b s n d"]:
        return F.embedding(input_ids, self.embedding).unsqueeze(2).expand(-1, -1, self.streams, -1)

    def _logits(self, state: Float[Tensor, "b s n d"]) -> Float[Tensor, "b s v"]:
        return F.linear(self.norm(self.collapse(state)), self.head)

    def prepare(self, counts: Callable[[], Int[Tensor, "v"]]) -> None:
        """Let components that depend on the training text get ready for it; call once, before training.

        Args:
            counts: gives how often each token id occurs; called only if a component wants to know.
        """
        for module in self.modules():
            prepare = getattr(module, "prepare", None)
            if module is not self and callable(prepare):
                prepare(counts)

    def after_step(self) -> None:
        """Let components that balance or adapt without gradients do so; call after every optimizer step."""
        for module in self._stepping:
            module.after_step()


def _mean_indexer_loss(aux: Aux) -> Aux:
    """Indexers learn from the mean of their layers' losses, so that each counts by the number of layers."""
    keys = [key for key in aux if key.startswith("loss/") and key.endswith("/indexer")]
    return aux | {key: aux[key] / len(keys) for key in keys}


def _needs_32_bits(module: nn.Module, name: str, tensor: Tensor) -> bool:
    return tensor.ndim < 2 or name in getattr(module, "wide", ())


def initialise(model: LanguageModel, seed: int) -> None:
    """Make a freshly built model a function of `seed`.

    Every matrix that construction filled with random numbers is drawn anew from N(0, initializer_range),
    by a generator of its own, seeded by `seed` and the tensor's name. Variants therefore start from the
    same values in all tensors that they have in common by name and shape. Vectors and constant matrices
    stay as constructed.
    """
    for name, parameter in model.named_parameters():
        if is_random(parameter):
            with torch.no_grad():
                parameter.copy_(drawn(name, parameter.shape, seed, model.variant.dims.initializer_range))


def is_random(parameter: Tensor) -> bool:
    """Whether construction filled it with random numbers."""
    return parameter.ndim > 1 and not bool((parameter == parameter.flatten()[0]).all())


def drawn(name: str, shape: Sequence[int], seed: int, std: float) -> Tensor:
    """What `initialise` fills the tensor of that name with."""
    # PyTorch's generator takes 32 bits of a seed, so both have to go into them.
    generator = torch.Generator("cpu").manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    return torch.empty(tuple(shape), device="cpu").normal_(0.0, std, generator=generator)


def shape_of(variant: Variant) -> LanguageModel:
    """The model on "meta": shapes, no memory and no values."""
    with torch.device("meta"), _NoDraws():
        return LanguageModel(variant)


class _NoDraws(TorchFunctionMode):
    """Random numbers are not drawn: on "meta" there is nothing to fill, and PyTorch loads its compiler to do it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is Tensor.normal_ else func(*args, **(kwargs or {}))


def build_model(
    preset: str | Variant, device: str | torch.device = "cpu", overrides: Sequence[str] = (), seed: int = 0
) -> LanguageModel:
    """A model from a preset in `sweeps/model/` or from a variant, initialised unless `device` is "meta".

    Raises:
        BadInputError: an unknown preset or override, or sizes that do not fit together.
    """
    if isinstance(preset, str):
        from ablate import config

        run = config.load([f"model={preset}", *overrides], require_sweep=False)
        preset = Variant.from_run(run, run.model.vocab_size or run.data.vocab_size)
    elif overrides:
        raise ValueError(f"overrides={list(overrides)} apply to a preset; a variant is complete already")
    if torch.device(device).type == "meta":
        return shape_of(preset)
    with torch.device(device):
        model = LanguageModel(preset)
    initialise(model, seed)
    return model
