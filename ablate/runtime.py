"""Process settings that make training fast without changing what it computes. Called once, before tensors are made."""

import ctypes
import platform
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def prepare(threads: int) -> None:
    """Threads, allocator and matrix kernels of a training process.

    glibc gives large blocks back to the system and faults every page in again at each step; keeping them halves
    the time of a step. On AMD processors PyTorch's `medium` matmul setting selects oneDNN's float32 kernels, twice
    as fast there as MKL's; with AMX the same setting would compute in bfloat16, and elsewhere it is slower.
    """
    torch.set_num_threads(threads)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    torch.set_float32_matmul_precision("medium" if _favours_onednn() else "highest")


def _favours_onednn() -> bool:
    """Whether oneDNN's float32 products are exact and the faster ones here."""
    try:
        facts = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "AuthenticAMD" in facts and "amx_bf16" not in facts
