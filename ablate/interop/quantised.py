"""DeepSeek-V4's number formats: FP8 in blocks of 128 x 128 and FP4 in rows of 32, with powers of two as scales."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ablate.errors import BadInputError

FP8, SCALES = torch.float8_e4m3fn, torch.float8_e8m0fnu
BLOCK, TILE = 128, 32
"""Rows and columns of a block of FP8; columns of a tile of FP4."""

_GRID = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], device="cpu")
"""What the low three bits of FP4 (e2m1) stand for; the fourth is the sign."""
_BETWEEN = (_GRID[1:] + _GRID[:-1]) / 2


def dequantised(values: Tensor, scales: Tensor) -> Tensor:
    """Exact values of a quantised matrix, in BF16 where that holds them all, else in FP32.

    Args:
        values: [out, in] in FP8, or [out, in/2] bytes of two FP4 each, the low four bits first.
        scales: [⌈out/128⌉, ⌈in/128⌉] or [out, in/32] powers of two (e8m0).

    Raises:
        BadInputError: a value or scale is not a number.
    """
    powers = scales.float()
    if values.dtype == FP8:
        rows, columns = values.shape
        wide = values.float() * _spread(_spread(powers, BLOCK, 0)[:rows], BLOCK, 1)[:, :columns]
    else:
        packed = values.view(torch.uint8).int()
        codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
        numbers = _GRID[codes & 7]
        wide = torch.where(codes > 7, -numbers, numbers) * _spread(powers, TILE, 1)
    if not wide.isfinite().all():
        raise BadInputError("a value or a scale is not a number")
    narrow = wide.bfloat16()
    return narrow if torch.equal(narrow.float(), wide) else wide


def to_fp8(matrix: Float[Tensor, "o i"]) -> tuple[Tensor, Tensor]:
    """FP8 values and block scales, the smallest powers of two under which no value exceeds 448.

    Values that such a block holds exactly come back exactly, whatever scale they had before.
    """
    rows, columns = matrix.shape
    padded = matrix.new_zeros(-(-rows // BLOCK) * BLOCK, -(-columns // BLOCK) * BLOCK, dtype=torch.float32)
    padded[:rows, :columns] = matrix
    blocks = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    exponents = _exponents(blocks.abs().amax((1, 3)), torch.finfo(FP8).max)
    spread = _spread(_spread(exponents, BLOCK, 0)[:rows], BLOCK, 1)[:, :columns]
    return torch.ldexp(matrix.float(), -spread).to(FP8), _scales(exponents)


def to_fp4(matrix: Float[Tensor, "o i"]) -> tuple[Tensor, Tensor]:
    """Bytes of two FP4 values each, [o, i/2], and scales of tiles, [o, i/32]; else as `to_fp8` (largest value 6).

    Raises:
        BadInputError: rows are not whole tiles.
    """
    if matrix.shape[1] % TILE:
        raise BadInputError(f"{matrix.shape[1]} columns are no multiple of the {TILE} of an FP4 tile")
    wide = matrix.float()
    exponents = _exponents(wide.unflatten(1, (-1, TILE)).abs().amax(-1), float(_GRID[-1]))
    scaled = torch.ldexp(wide, -_spread(exponents, TILE, 1))
    size = scaled.abs()
    codes = torch.bucketize(size, _BETWEEN)
    # In the middle between two values the even code wins, as rounding to nearest has it.
    middle = (codes < len(_BETWEEN)) & (size == _BETWEEN[codes.clamp(max=len(_BETWEEN) - 1)])
    codes = codes + (middle & (codes % 2 == 1)).int() + 8 * (scaled < 0).int()
    low, high = codes.unflatten(-1, (-1, 2)).unbind(-1)
    return (low | high << 4).to(torch.uint8).view(torch.int8), _scales(exponents)


def _exponents(largest: Float[Tensor, "*n"], limit: float) -> Int[Tensor, "*n"]:
    """Smallest e with `largest <= limit 2^e`, within what e8m0 holds; 0 where all is zero."""
    fraction, exponent = torch.frexp(largest.double() / limit)
    smallest = torch.where(fraction == 0.5, exponent - 1, exponent)
    return torch.where(largest == 0, 0, smallest).clamp(-127, 127)


def _scales(exponents: Int[Tensor, "*n"]) -> Tensor:
    return (exponents + 127).to(torch.uint8).view(SCALES)


def _spread(scales: Tensor, size: int, axis: int) -> Tensor:
    return scales.repeat_interleave(size, axis)
