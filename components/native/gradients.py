"""What happens to all gradients between the backward pass and the optimizer; see `gradients.c`."""

import ctypes
from collections.abc import Sequence

from torch import Tensor

from components.native import kernels


def clip_norm(gradients: Sequence[Tensor], limit: float) -> None:
    """As `torch.nn.utils.clip_grad_norm_`, for contiguous float32 tensors on the CPU."""
    count = len(gradients)
    addresses = (ctypes.c_void_p * count)(*(g.data_ptr() for g in gradients))
    sizes = (ctypes.c_int64 * count)(*(g.numel() for g in gradients))
    kernels().clip_norm(count, limit, addresses, sizes)
