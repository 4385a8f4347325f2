"""Multi-token prediction: layers after the last one, each of which predicts one token further."""

from typing import cast

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ablate.variant import Variant
from components.documents import Documents
from components.precision import at_least_float32
from components.slots import MTP, Aux, Norm
from components.spec import Layer, Site

State = Float[Tensor, "b s n d"]


class PredictionLayer(nn.Module):
    """Joins the next token to the state of the layer before; then block, collapse and norm of its own."""

    def __init__(self, variant: Variant, layer: Layer, block: nn.Module) -> None:
        super().__init__()
        self.join = cast(MTP, variant.part("mtp", layer).build())
        self.block = block
        site = Site(dims=variant.dims, layer=layer)
        self.collapse = variant.residual.collapse(variant.config("residual")[1], site)
        self.norm = cast(Norm, variant.part("norm", layer).build())

    def forward(
        self,
        state: State,
        hidden: Float[Tensor, "b s d"],
        embedded: Float[Tensor, "b s d"],
        token_ids: Int[Tensor, "b s"],
        documents: Documents | None = None,
    ) -> tuple[State, Float[Tensor, "b s d"], Aux]:
        """The state after this layer, the same collapsed, and what the block reports."""
        state, aux = self.block(self.join(state, hidden, embedded), token_ids, documents)
        return state, self.collapse(state), aux


class Prediction(nn.ModuleList):
    """D prediction layers in a chain: at position i, layer k (from 1) knows token i+k and predicts i+k+1.

    Attributes:
        weight: λ of the loss `λ/D Σ_k L_k`; may be set as training goes on.
    """

    def __init__(self, variant: Variant, layers: list[PredictionLayer]) -> None:
        super().__init__(layers)
        self._config = variant.config("mtp")[1] if layers else None
        self.weight: float = 0.0
        self.decaying(False)

    def decaying(self, does: bool) -> None:
        """Take the weight that belongs to a learning rate that decays, or does not yet."""
        if self._config is not None:
            self.weight = self._config.decay_weight if does else self._config.weight

    def forward(
        self,
        state: State,
        hidden: Float[Tensor, "b s d"],
        input_ids: Int[Tensor, "b s"],
        embedding: Float[Tensor, "v d"],
        head: Float[Tensor, "v d"],
        doc_ids: Int[Tensor, "b s"] | None = None,
    ) -> tuple[list[Float[Tensor, "b _ v"]], Aux]:
        """Logits of every layer, those of layer k for the first s - k positions, and what blocks report.

        Args:
            state: what the model's last layer left, neither collapsed nor normed.
            hidden: the same collapsed, not normed.
        """
        logits, aux = [], cast(Aux, {})
        for known, layer in enumerate(cast(list[PredictionLayer], list(self)), start=1):
            tokens = input_ids[:, known:]
            documents = None if doc_ids is None else Documents.of(doc_ids[:, :-known])
            embedded = F.embedding(tokens, embedding)
            state, hidden, more = layer(state[:, :-1], hidden[:, :-1], embedded, tokens, documents)
            logits.append(F.linear(layer.norm(hidden), head))
            aux |= more
        return logits, aux

    def losses(
        self,
        further: list[Float[Tensor, "b _ v"]],
        logits: Float[Tensor, "b s v"],
        labels: Int[Tensor, "b s"],
    ) -> Aux:
        """Weighted losses, the same unweighted, and how often a layer and the model would say the same token.

        A layer's prediction for a token would be accepted in greedy decoding if it is what the model says one
        step later. Positions count if neither their target nor a token on the way to it is left out by -100.

        Args:
            further: what `forward` gives.
            logits: the model's, for the next token.
        """
        aux: Aux = {}
        counted = labels != -100
        for known, ahead in enumerate(further, start=1):
            targets = labels[:, known:]
            counted = counted[:, :-1] & (targets != -100)
            nats = F.cross_entropy(
                at_least_float32(ahead).transpose(1, 2), targets.clamp(min=0), reduction="none"
            )
            loss = _mean(nats, counted)
            same = ahead.argmax(-1) == logits[:, known:].argmax(-1)
            suffix = f"_{known}" if known > 1 else ""
            aux[f"loss/mtp/loss{suffix}"] = self.weight / len(further) * loss
            aux[f"diag/mtp/loss{suffix}"] = loss.detach()
            aux[f"diag/mtp/accept{suffix}"] = _mean(same.to(loss.dtype), counted)
        return aux


def _mean(values: Float[Tensor, "b s"], counted: Bool[Tensor, "b s"]) -> Float[Tensor, ""]:
    return values.masked_fill(~counted, 0.0).sum() / counted.sum().clamp_min(1)
