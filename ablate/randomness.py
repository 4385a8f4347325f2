"""The generators of random numbers that a step may draw from: seeded per trial, saved and restored whole.

Data, initial weights and hash tables have generators of their own; these are for what a component draws while
it computes, such as dropout.
"""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed(value: int) -> None:
    """Let every generator begin where `value` says."""
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value % 2**32)


def state(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Where the generators of PyTorch (CPU and `device`), and of Python and NumPy as JSON, stand."""
    tensors = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    key = numpy["state"]["key"].tolist()
    return tensors, {"python": random.getstate(), "numpy": {**numpy, "state": {**numpy["state"], "key": key}}}


def restore(tensors: dict[str, Tensor], rest: dict[str, Any], device: torch.device) -> None:
    """Inverse of `state`."""
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    version, internal, gauss = rest["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy = rest["numpy"]
    key = np.asarray(numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})
