"""Fused CPU kernels in C, compiled at installation where there is a compiler. Everything works without them.

They compute what the PyTorch code beside them defines, for float32 on the CPU. `available()` says whether
they are there; `switched_off()` makes a block of code take the PyTorch path, for comparison.
"""

import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_off = False

_TYPES = {"l": ctypes.c_long, "i": ctypes.c_int, "f": ctypes.c_float, "p": ctypes.c_void_p}
SIGNATURES = {
    "rms_norm_forward": "lifpppp",
    "rms_norm_backward": "lipppppp",
    "rotate": "llliifppp",
    "swiglu_forward": "lifppp",
    "swiglu_backward": "lifppppp",
    "cross_entropy_forward": "llpppp",
    "cross_entropy_backward": "llfpppp",
    "masked_softmax_forward": "lllllifpppp",
    "masked_softmax_backward": "llllifpppp",
    "block_keys_forward": "lllllllppp",
    "block_keys_backward": "lllllllppp",
    "block_mask": "lllllllpp",
    "experts_sort": "lippp",
    "rows_gather": "lllppp",
    "rows_add": "lllppp",
    "index_scores_forward": "lllppp",
    "index_scores_backward": "lllppppp",
    "highest": "lllpp",
    "divergence": "llppppp",
    "entry_mass": "llllllifpppp",
    "gated_pool_forward": "llllipppp",
    "gated_pool_backward": "llllippppppp",
    "clip_norm": "lfpp",
    "streams_read_forward": "iliiffppppppp",
    "streams_read_backward": "iliifppppppppppp",
    "streams_write_forward": "ilipppp",
    "streams_write_backward": "ilippppppp",
}
"""Arguments of every kernel: long, int, float, pointer."""


def available() -> bool:
    """Whether the kernels were compiled and are not switched off."""
    return not _off and library() is not None


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels compute on these: float32, on the CPU, for real.

    Not under automatic mixed precision: products between the kernels would then come in half precision.
    """
    wide = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
    return available() and wide and not torch.is_autocast_enabled("cpu")


@contextmanager
def switched_off() -> Iterator[None]:
    """The PyTorch path, for as long as the block runs."""
    global _off
    before, _off = _off, True
    try:
        yield
    finally:
        _off = before


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None."""
    spec = importlib.util.find_spec("components.native._kernels")
    if spec is None or spec.origin is None:
        return None
    try:
        found = ctypes.CDLL(spec.origin)
        for name, letters in SIGNATURES.items():
            getattr(found, name).argtypes = [_TYPES[letter] for letter in letters]
    except (OSError, AttributeError):  # built for another machine, or from older sources
        return None
    return found


def kernels() -> ctypes.CDLL:
    """The compiled kernels, where `takes` has said that they are there."""
    found = library()
    assert found is not None
    return found


def pointer(tensor: Tensor | None) -> int | None:
    """Address of a contiguous tensor's first element; null for None."""
    return None if tensor is None else tensor.data_ptr()
