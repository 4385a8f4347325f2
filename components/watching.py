"""Asking the components of a model for their diagnostics."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def watching(model: nn.Module) -> Iterator[None]:
    """Let all components of `model` return all their diagnostics, and then no longer."""
    modules: list[Any] = [module for module in model.modules() if hasattr(module, "watched")]
    for module in modules:
        module.watched = True
    try:
        yield
    finally:
        for module in modules:
            module.watched = False
