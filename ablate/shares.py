"""Where the time of a training step goes, by component, forward and backward."""

import bisect
import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from components.slots import Collapse, Component

METHODS = ("forward", "read", "write", "rotate", "unrotate", "after_step")
"""What components compute in."""

REST = "embedding, head, loss"
"""What the model computes outside components."""
GRADIENTS, ENGINE, UPDATE = "gradients summed", "autograd itself", "optimizer"


@dataclass
class Share:
    """Seconds of one step, without what is spent in components that this one uses."""

    forward: float = 0.0
    backward: float = 0.0

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.forward + self.backward


@dataclass
class _Clock:
    """Counts time for whoever is on top of a stack."""

    now: Callable[[], float]
    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    stack: list[str] = field(default_factory=list)
    since: float = 0.0

    def enter(self, label: str) -> None:
        self._charge()
        self.stack.append(label)

    def leave(self) -> None:
        self._charge()
        self.stack.pop()

    def _charge(self) -> None:
        now = self.now()
        if self.stack:
            self.spent[self.stack[-1]] += now - self.since
        self.since = now


def of_step(
    model: nn.Module,
    forward: Callable[[], Tensor],
    update: Callable[[], None],
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, Share]:
    """Run one step and say what it spent, by `slot/name`.

    What a component computes in the backward pass is found by the numbers that autograd gave to its
    operations in the forward pass. Watching costs time itself: use the shares, not the sum.

    Args:
        forward: gives the loss.
        update: everything after the backward pass.
        now: the clock; where work is queued for a device, one that waits for it.
    """
    clock = _Clock(now)
    with _watched(model, clock) as owners:
        clock.enter(REST)
        owners.append((_next_number(), REST))
        loss = forward()
        clock.leave()
    shares = {label: Share(forward=seconds) for label, seconds in clock.spent.items()}
    clock.spent.clear()
    handles = list(_watch_nodes(loss, clock, owners))
    clock.enter(ENGINE)
    loss.backward()
    clock.leave()
    for handle in handles:
        handle.remove()
    for label, seconds in clock.spent.items():
        shares.setdefault(label, Share()).backward = seconds
    clock.spent.clear()
    clock.enter(UPDATE)
    update()
    clock.leave()
    shares[UPDATE] = Share(forward=clock.spent[UPDATE])
    return shares


def medians(steps: Sequence[dict[str, Share]]) -> dict[str, Share]:
    """Of several steps of one model, largest first."""
    found = {
        label: Share(
            statistics.median(step[label].forward for step in steps),
            statistics.median(step[label].backward for step in steps),
        )
        for label in steps[0]
    }
    return dict(sorted(found.items(), key=lambda item: -item[1].seconds))


Owners = list[tuple[int, str]]
"""From which number on operations belong to whom, ascending."""


@contextmanager
def _watched(model: nn.Module, clock: _Clock) -> Iterator[Owners]:
    """Components report when they begin and end, as long as the block runs."""
    owners: Owners = []
    wrapped: list[tuple[nn.Module, str]] = []
    for module, label in _labelled(model):
        for name in METHODS if label else ():
            method = getattr(module, name, None)
            if callable(method):
                object.__setattr__(module, name, _reporting(method, label, clock, owners))
                wrapped.append((module, name))
    try:
        yield owners
    finally:
        for module, name in wrapped:
            object.__delattr__(module, name)


def _labelled(
    module: nn.Module, user: Component | None = None, label: str = ""
) -> Iterator[tuple[nn.Module, str]]:
    """Every module with whose it is; a component that another has to itself is part of that one, as in prices."""
    if isinstance(module, Component):
        if user is None or module.slot in user.uses:
            label = f"{module.slot}/{module.name}"
        user = module
    elif isinstance(module, Collapse):
        label = "collapse"
    yield module, label if isinstance(module, Component | Collapse) else ""
    for child in module.children():
        yield from _labelled(child, user, label)


def _reporting(method: Callable[..., Any], label: str, clock: _Clock, owners: Owners) -> Callable[..., Any]:
    @functools.wraps(method)
    def reporting(*args: Any, **kwargs: Any) -> Any:
        clock.enter(label)
        owners.append((_next_number(), label))
        try:
            return method(*args, **kwargs)
        finally:
            clock.leave()
            owners.append((_next_number(), clock.stack[-1]))

    return reporting


def _next_number() -> int:
    return torch.autograd._get_sequence_nr()  # pyright: ignore[reportPrivateImportUsage]


def _watch_nodes(loss: Tensor, clock: _Clock, owners: Owners) -> Iterator[Any]:
    """Every node of the graph reports when it begins and ends; yields what undoes that."""
    starts = [number for number, _ in owners]
    assert loss.grad_fn is not None
    seen: set[Node] = {loss.grad_fn}
    waiting: list[Node] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        following = [n for n, _ in node.next_functions if n is not None and n not in seen]
        seen.update(following)
        waiting += following
        label = GRADIENTS
        if node.next_functions:
            label = owners[max(0, bisect.bisect_right(starts, node._sequence_nr()) - 1)][1]
        yield node.register_prehook(functools.partial(_begin, clock, label))
        yield node.register_hook(functools.partial(_end, clock))


def _begin(clock: _Clock, label: str, _: Any) -> None:
    clock.enter(label)


def _end(clock: _Clock, *_: Any) -> None:
    clock.leave()
