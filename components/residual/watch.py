"""What residual sites make of parallel streams on the way through a model."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from components.precision import at_least_float32
from components.slots import Aux, Residual
from components.spec import Alarm

_SOURCE = "mHC, arXiv 2512.24880 §5 (gain); methodology §E (bounds)"

STREAMS = {
    "gain_forward_max": "most that a stream receives of all streams at the embedding, in absolute values; 1 is ideal",
    "gain_forward_min": "least that a stream receives of them",
    "gain_backward_max": "most that all streams here receive of a stream at the embedding; 1 is ideal",
    "gain_backward_min": "least that they receive of one",
    "stream_cosine": "mean cosine between two streams of a token",
    "stream_spread": "distance of the streams from their mean, relative to their norm; 0 where they are copies",
}
"""What `Streams` measures of any residual that has several from the beginning."""

GAINS = (
    Alarm(
        metric="gain_forward_max",
        above=4.0,
        why="a stream is amplified on its way through the layers",
        source=_SOURCE,
        after=0.0,
    ),
    Alarm(
        metric="gain_backward_max",
        above=4.0,
        why="the gradient of a stream is amplified on its way back",
        source=_SOURCE,
        after=0.0,
    ),
    Alarm(
        metric="gain_forward_min",
        below=0.25,
        why="a stream receives next to nothing from the streams before it",
        source=_SOURCE,
        after=0.0,
    ),
    Alarm(
        metric="gain_backward_min",
        below=0.25,
        why="a stream hardly reaches later layers, and next to no gradient comes back to it",
        source=_SOURCE,
        after=0.0,
    ),
    Alarm(
        metric="stream_spread",
        below=1e-6,
        why="the streams are copies of each other, so that there is nothing to mix",
        source="DeepSeek-V4 specification §2.5: equal streams stay equal; spread at the start is above 1e-5",
    ),
)
"""Alarms of entries whose streams run side by side from the embedding to the collapse."""


class Streams:
    """The product of what all sites so far carry over from streams to streams, for each token.

    A site is asked by letting it write a state in which each stream has a channel of its own and the branch
    gives nothing, so that any residual can be watched without knowing of it.
    """

    def __init__(self, state: Float[Tensor, "b s n d"]) -> None:
        wide = at_least_float32(state)
        self._carried = torch.eye(state.shape[2], dtype=wide.dtype, device=wide.device).expand(
            *state.shape[:3], -1
        )

    @torch.no_grad()
    def pass_through(self, residual: Residual, carry: Any) -> None:
        """One more site."""
        nothing = self._carried.new_zeros(*self._carried.shape[:2], self._carried.shape[3])
        self._carried = residual.write(self._carried, nothing, carry)

    @torch.no_grad()
    def diagnose(self, state: Float[Tensor, "b s n d"]) -> Aux:
        """Gains from the embedding up to here, means over tokens, and how much the streams differ.

        The forward gain of a stream is the sum of what it receives of all streams, the backward gain the sum of
        what all streams receive of it, both in absolute values.
        """
        streams = at_least_float32(state)
        received, given = self._carried.abs().sum(3), self._carried.abs().sum(2)
        n = state.shape[2]
        units = F.normalize(streams, dim=-1)
        cosine = (units.sum(2).square().sum(-1) - n) / (n * (n - 1))
        apart = (streams - streams.mean(2, keepdim=True)).flatten(2).norm(dim=-1)
        return {
            "diag/gain_forward_max": received.amax(-1).mean(),
            "diag/gain_forward_min": received.amin(-1).mean(),
            "diag/gain_backward_max": given.amax(-1).mean(),
            "diag/gain_backward_min": given.amin(-1).mean(),
            "diag/stream_cosine": cosine.mean(),
            "diag/stream_spread": (apart / streams.flatten(2).norm(dim=-1)).mean(),
        }
