"""What residuals of one stream share."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from components.slots import Collapse, Residual
from components.spec import Cost, Site


class FirstStream(Collapse):
    """The only stream there is."""

    def forward(self, state: Float[Tensor, "b s n d"]) -> Float[Tensor, "b s d"]:
        return state[:, :, 0]


class SingleStream(Residual):
    """One stream that every branch reads as it is; entries differ in how they write."""

    @staticmethod
    def streams(config: Any, layers: int = 0) -> int:
        return 1

    @staticmethod
    def collapse(config: Any, site: Site) -> Collapse:
        return FirstStream()

    @staticmethod
    def collapse_cost(config: Any, site: Site, seq_len: int) -> Cost:
        return Cost()

    def read(self, state: Float[Tensor, "b s n d"]) -> tuple[Float[Tensor, "b s d"], Any]:
        return state[:, :, 0], None
