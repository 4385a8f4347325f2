"""What feed-forward layers do between their matrices, and how wide they are for it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from components import native
from components.native import pointwise
from components.spec import Alarm

GATED = ("swiglu", "geglu")
"""Activated times linear: three matrices."""
PLAIN = ("relu2", "gelu")
"""Activated: two matrices."""


def activated(hidden: Float[Tensor, "... h"], kind: str, limit: float) -> Float[Tensor, "... f"]:
    """The activation `kind` of pre-activations; of gated kinds the gate half comes first, so that h = 2f.

    What is activated is only bounded above, by `limit`, and before: a very negative gate stays closed. What
    a gate multiplies is bounded on both sides. 0 means no limit.
    """
    if kind == "swiglu":
        return clamped_swiglu(hidden, limit)
    gate, up = hidden.chunk(2, dim=-1) if kind in GATED else (hidden, None)
    if limit:
        gate, up = gate.clamp(max=limit), None if up is None else up.clamp(-limit, limit)
    if kind == "relu2":
        return F.relu(gate).square()
    return F.gelu(gate) if up is None else F.gelu(gate) * up


def clamped_swiglu(gate_up: Float[Tensor, "... two_f"], limit: float) -> Float[Tensor, "... f"]:
    """`SiLU(min(gate, limit)) * clip(up, -limit, limit)`; see `activated`."""
    if native.takes(gate_up):
        return pointwise.swiglu(gate_up, limit)
    gate, up = gate_up.chunk(2, dim=-1)
    if limit:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return F.silu(gate) * up


@torch.no_grad()
def clamp_rate(hidden: Float[Tensor, "... h"], kind: str, limit: float) -> Float[Tensor, ""]:
    """Share of pre-activations that the clamp of `activated` changes, and that therefore pass no gradient."""
    if kind not in GATED:
        return (hidden > limit).float().mean()
    gate, up = hidden.chunk(2, dim=-1)
    return ((gate > limit).float().mean() + (up.abs() > limit).float().mean()) / 2


CLAMP = {"clamp_rate": "share of the routed experts' or the layer's pre-activations beyond the clamp"}
CLAMPED = Alarm(
    metric="clamp_rate",
    above=0.05,
    why="a noticeable part of the pre-activations sits on the clamp, where no gradient passes",
    source="methodology §E watches it and gives no bound; one in twenty is far from rare outliers",
    after=0.0,
)


def rows(kind: str, width: int) -> int:
    """Pre-activations of a layer that is `width` wide if gated."""
    return 2 * width if kind in GATED else columns(kind, width)


def columns(kind: str, width: int) -> int:
    """Activations of a layer as large as a gated one of `width`.

    Two matrices hold what three do if they are half as wide again; an odd `width` leaves them half a row and
    half a column short.
    """
    return width if kind in GATED else 3 * width // 2


def matrices(kind: str, hidden: int, width: int) -> int:
    """Parameters of such a layer."""
    return hidden * (rows(kind, width) + columns(kind, width))


class Expert(nn.Module):
    """One feed-forward layer.

    Attributes:
        gate_up: [2f, d], the rows of w1 (gate) first, then those of w3 (up); of plain kinds [3f/2, d].
        down: [d, f], w2; of plain kinds [d, 3f/2].
    """

    def __init__(self, kind: str, hidden: int, width: int, limit: float, std: float) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(rows(kind, width), hidden).normal_(0.0, std))
        self.down = nn.Parameter(torch.empty(hidden, columns(kind, width)).normal_(0.0, std))
        self.row_blocks = {"gate_up": rows(kind, width) // columns(kind, width)}
        self.kind, self.limit = kind, limit

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return F.linear(activated(F.linear(x, self.gate_up), self.kind, self.limit), self.down)
