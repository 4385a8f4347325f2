"""How much channels and experts of a model do on a text: what `ablate slice --policy activation` keeps them by."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ablate.axes import HIDDEN
from ablate.model import LanguageModel
from components.slots import Router


@torch.no_grad()
def activity(model: LanguageModel, rows: Tensor) -> dict[tuple[str, str], Tensor]:
    """Scores by (layer, axis).

    Hidden channels have the sum of squares of what branches read of them (after the norm, over all layers), experts
    the number of tokens that were sent to them.

    Args:
        rows: [rows, tokens] of the text.
    """
    found: dict[tuple[str, str], Tensor] = {}

    def add(key: tuple[str, str], amount: Tensor) -> None:
        found[key] = found[key] + amount if key in found else amount

    def reads(module: nn.Module, inputs: Any, output: Tensor) -> None:
        add(("", HIDDEN), output.double().square().flatten(0, -2).sum(0))

    def routes(scope: str, experts: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            chosen = output[1].flatten()
            add((scope, "experts"), torch.bincount(chosen, minlength=experts)[:experts].double())

        return hook

    hooks = []
    for name, module in model.named_modules():
        scope = ".".join(name.split(".")[:2])
        if name.endswith(("attention_norm", "ffn_norm")):
            hooks.append(module.register_forward_hook(reads))
        elif isinstance(module, Router):
            hooks.append(module.register_forward_hook(routes(scope, model.variant.dims.n_routed_experts)))
    try:
        for row in rows:
            model(row[None, :-1], row[None, 1:])  # with labels, so that prediction layers run too
    finally:
        for hook in hooks:
            hook.remove()
    return found
