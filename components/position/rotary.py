"""What rotary position encodings share: frequencies of a layer, and the rotation itself."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from components import native
from components.native import pointwise
from components.slots import Position
from components.spec import Cost, Site, searchable


class Rotary(Position):
    """Rotates the last `dims.qk_rope_head_dim` channels, in interleaved pairs, by an angle per position.

    Pair i at position p turns by `p * w_i` with `w_i = base^(-2i / qk_rope_head_dim)`. Everything in one
    layer turns at the same rates: layers that compress (`ratio` != 0) have a base of their own and YaRN, all
    others neither. Cosine and sine are not scaled. Rates and angles are in float32, or float64 for such
    inputs.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of rotary position encodings."""

        rope_theta: float = searchable(10000.0, low=1e3, high=1e6, log=True)
        """Base of layers that do not compress."""
        compress_rope_theta: float = searchable(160000.0, low=1e3, high=1e7, log=True)
        """Base of layers that compress."""
        yarn_factor: float = 1.0
        """How many times longer than `yarn_original` contexts may be, in layers that compress; 1 is off."""
        yarn_original: int = 65536
        """Length of context, in tokens, that unscaled rates are meant for."""
        yarn_beta_fast: float = 32.0
        """Pairs that turn more often than this within `yarn_original` keep their rate."""
        yarn_beta_slow: float = 1.0
        """Pairs that turn less often than this within `yarn_original` slow down by `yarn_factor`."""

        def __post_init__(self) -> None:
            for key in ("rope_theta", "compress_rope_theta"):
                if not getattr(self, key) > 1:
                    raise ValueError(f"{key}={getattr(self, key)} must be greater than 1")
            for key in ("yarn_factor", "yarn_original"):
                if not getattr(self, key) >= 1:
                    raise ValueError(f"{key}={getattr(self, key)} must be at least 1")
            if not self.yarn_beta_fast > self.yarn_beta_slow > 0:
                raise ValueError(
                    f"yarn_beta_fast={self.yarn_beta_fast} must be greater than "
                    f"yarn_beta_slow={self.yarn_beta_slow}, and both greater than 0"
                )

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__()
        self.rates = rates(config, site)
        # Not buffers: a cast of the model to half precision must not reach them.
        self._padded: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}
        self._tables: dict[tuple[int, torch.dtype], Tensor] = {}

    def rotate(
        self, x: Float[Tensor, "b s ... c"], positions: Int[Tensor, "s"]
    ) -> Float[Tensor, "b s ... c"]:
        """Turn the last channels of `x` by the angles of `positions`; all others stay as they are."""
        return self._turn(x, positions)

    def _turn(self, x: Tensor, positions: Tensor, direction: int = 1) -> Tensor:
        if native.takes(x):
            return pointwise.rotate(x, self._turns(positions, x), direction)
        # One complex product over all channels is several times faster than cutting the rotary ones out and
        # putting them back; the others are multiplied by exactly 1 + 0i.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rates = self._rates_for(x.shape[-1], wide)
        angles = (direction * positions).to(rates.dtype).unsqueeze(1) * rates
        turns = torch.polar(torch.ones_like(angles), angles)
        turns = turns.view(len(positions), *(1,) * (x.ndim - 3), turns.shape[-1])
        pairs = torch.view_as_complex(wide.contiguous().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)

    def _turns(self, positions: Tensor, like: Tensor) -> Tensor:
        """Cosine and sine of every position and rotary pair: [s, pairs, 2]. Ascending positions on the CPU."""
        key = (2 * len(self.rates_of(like.shape[-1])), like.dtype)
        length = int(positions[-1]) + 1 if len(positions) else 0
        table = self._tables.get(key)
        if table is None or len(table) < length:
            angles = torch.arange(2 * length, dtype=like.dtype).unsqueeze(1) * self._rates_for(key[0], like)
            table = self._tables[key] = torch.stack((angles.cos(), angles.sin()), dim=-1)
        return table.index_select(0, positions)

    def rates_of(self, width: int) -> list[float]:
        """Rates of the pairs that rotate, among `width` channels; the others come before them."""
        return self.rates

    def _rates_for(self, width: int, like: Tensor) -> Tensor:
        """Rate of every channel pair: 0 for the leading ones."""
        key = (width, like.dtype, like.device)
        if key not in self._padded:
            rates = self.rates_of(width)
            still = width // 2 - len(rates)
            self._padded[key] = torch.tensor([0.0] * still + rates, dtype=like.dtype, device=like.device)
        return self._padded[key]

    @staticmethod
    def cost(config: Config, site: Site, seq_len: int) -> Cost:
        """Nothing that counts: rotations are elementwise."""
        return Cost()

    @staticmethod
    def check(config: Config, site: Site, seq_len: int) -> None:
        rope, head = site.dims.qk_rope_head_dim, site.dims.head_dim
        if rope % 2 or rope > head:
            raise ValueError(
                f"qk_rope_head_dim={rope} must be even and at most head_dim={head}: channels rotate in pairs"
            )
        if head % 2:
            raise ValueError(f"head_dim={head} must be even: channels rotate in pairs")

    @staticmethod
    def warnings(config: Config, site: Site, seq_len: int) -> list[str]:
        if site.dims.qk_rope_head_dim == 0:
            return ["qk_rope_head_dim=0: no channel rotates, the same as position=nope"]
        return []


def rates(config: Rotary.Config, site: Site, width: int | None = None) -> list[float]:
    """Angle per token of each rotary channel pair of a layer, fastest first.

    `width` channels rotate, `qk_rope_head_dim` unless given.
    With YaRN, the pairs between the two betas go over from the full to the slowed rate along a straight line.
    """
    width = site.dims.qk_rope_head_dim if width is None else width
    compresses = site.layer.ratio != 0
    base = config.compress_rope_theta if compresses else config.rope_theta
    plain = [base ** (-2 * i / width) for i in range(width // 2)]
    if not compresses or config.yarn_factor == 1:
        return plain

    def pair_turning(times: float) -> float:
        return width * math.log(config.yarn_original / (2 * math.pi * times)) / (2 * math.log(base))

    low = max(math.floor(pair_turning(config.yarn_beta_fast)), 0)
    high = min(math.ceil(pair_turning(config.yarn_beta_slow)), width - 1)
    span = (high - low) or 0.001
    slowed = [min(max((i - low) / span, 0.0), 1.0) for i in range(len(plain))]
    return [w * (share / config.yarn_factor + 1 - share) for w, share in zip(plain, slowed, strict=True)]
