"""How long a training step takes, what it holds in memory, and at what share of the machine's matmul rate it runs."""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ablate import optimization, schema, shares
from ablate.model import LanguageModel
from ablate.shares import Share

ROUND_SECONDS = 0.2
"""Each variant trains at least that long in each round."""

WATCHED_STEPS = 5
"""Steps from which components' shares are taken."""

PRODUCTS = {"cpu": (2048, 1024, 1024), "cuda": (8192, 8192, 8192)}
"""Matrix product whose rate is the machine's, by kind of device."""

DTYPES = {"32": torch.float32, "64": torch.float64, "16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class Subject:
    """Something that trains: one step is `forward`, the backward pass of its loss, `update`.

    Attributes:
        flops: training FLOPs of a step, by the cost contract.
    """

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    forward: Callable[[], Tensor]
    tokens: int
    flops: int
    grad_clip: float = 1.0

    def step(self) -> None:
        """One training step."""
        self.forward().backward()
        self.update()

    def update(self) -> None:
        """What follows the backward pass."""
        if self.grad_clip:
            optimization.clip(self.optimizer, self.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if isinstance(self.model, LanguageModel):
            self.model.after_step()

    @property
    def resting_bytes(self) -> int:
        """Of parameters, buffers and what the optimizer keeps."""
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [*self.model.parameters(), *self.model.buffers(), *filter(torch.is_tensor, kept)]
        return sum(t.numel() * t.element_size() for t in tensors)


@dataclass(frozen=True)
class Machine:
    """What steps are measured on, and by which clock.

    Attributes:
        clock: `process` (this process's CPU time, which other load does not change) or `wall`.
    """

    device: torch.device
    dtype: torch.dtype
    threads: int
    clock: str

    @classmethod
    def of(cls, run: schema.Run) -> "Machine":
        """The one that a configuration names."""
        name = run.trainer.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        device, threads = torch.device(name), run.launcher.threads
        clock = "process" if device.type == "cpu" and threads == 1 else "wall"
        return cls(device, DTYPES[run.trainer.precision.split("-")[0]], threads, clock)

    def now(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.clock == "process" else time.perf_counter()


@dataclass(frozen=True)
class Row:
    """What was measured of one subject.

    Attributes:
        seconds: of a step, median over rounds; `least_seconds` is the smallest.
        ratio: to the first subject's time in the same round, median.
        matmul_share: FLOPs per second over those of a large matrix product in the same round, median.
        peak_bytes: what a step holds at most beside `resting_bytes`.
    """

    name: str
    tokens: int
    flops: int
    seconds: float
    least_seconds: float
    ratio: float
    tokens_per_second: float
    flops_per_second: float
    matmul_share: float
    resting_bytes: int
    peak_bytes: int
    components: dict[str, Share] = field(default_factory=dict)


def measure(subjects: Sequence[Subject], machine: Machine, rounds: int) -> tuple[tuple[Row, ...], float]:
    """Rows, and FLOPs per second of a large matrix product; every round measures everything once."""
    steps = []
    for each in subjects:
        each.step()
        begun = machine.now()
        each.step()
        steps.append(max(1, math.ceil(ROUND_SECONDS / (machine.now() - begun))))
    times: list[list[float]] = [[] for _ in subjects]
    rates: list[float] = []
    for _ in range(rounds):
        rates.append(matmul_rate(machine))
        for index, each in enumerate(subjects):
            begun = machine.now()
            for _ in range(steps[index]):
                each.step()
            times[index].append((machine.now() - begun) / steps[index])
    rows = [_row(each, times[i], times[0], rates, machine) for i, each in enumerate(subjects)]
    return tuple(rows), statistics.median(rates)


def matmul_rate(machine: Machine) -> float:
    """FLOPs per second of one large product in the precision of training."""
    m, n, k = PRODUCTS[machine.device.type]
    a = torch.ones(m, k, dtype=machine.dtype, device=machine.device)
    b = torch.ones(k, n, dtype=machine.dtype, device=machine.device)
    torch.mm(a, b)
    begun = machine.now()
    for _ in range(3):
        torch.mm(a, b)
    return 3 * 2 * m * n * k / (machine.now() - begun)


def _row(each: Subject, taken: list[float], first: list[float], rates: list[float], machine: Machine) -> Row:
    seconds = statistics.median(taken)
    components: dict[str, Share] = {}
    if isinstance(each.model, LanguageModel):
        watched = [
            shares.of_step(each.model, each.forward, each.update, machine.now) for _ in range(WATCHED_STEPS)
        ]
        components = shares.medians(watched)
    return Row(
        name=each.name,
        tokens=each.tokens,
        flops=each.flops,
        seconds=seconds,
        least_seconds=min(taken),
        ratio=statistics.median(own / other for own, other in zip(taken, first, strict=True)),
        tokens_per_second=each.tokens / seconds,
        flops_per_second=each.flops / seconds,
        matmul_share=statistics.median(
            each.flops / own / rate for own, rate in zip(taken, rates, strict=True)
        ),
        resting_bytes=each.resting_bytes,
        peak_bytes=peak_bytes(each.step, machine.device),
        components=components,
    )


def peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """Bytes that PyTorch's allocator holds at most during `step`, beyond those before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    held = highest = 0
    for change in _changes(step):
        held += change
        highest = max(highest, held)
    return highest


def _changes(step: Callable[[], None]) -> Iterator[int]:
    """Bytes of every allocation, and of every release below zero, in order."""
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it reports its own beginning and end
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    found: list[Any] = profiler.profiler.kineto_results.events()
    changes = [event for event in found if event.name() == "[memory]"]
    yield from (event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns()))
