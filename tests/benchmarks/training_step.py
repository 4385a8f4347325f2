"""Our training step against transformers' `deepseek_v4` and a dense Llama: python tests/benchmarks/training_step.py.

    training_step.py [--size smoke|tiny|medium] [--rounds N] [--threads N] [--only TEXT]...

All three train on the same batch with the same loss and optimizer; ours and transformers' start from the same
weights. The Llama has as many layers, heads and channels, and a feed-forward as wide as makes its training
FLOPs equal. Every contender has a process of its own, because an allocator cannot be set twice, and they take
turns: one step each per round. Ratios are medians over rounds; with one thread times are processor time, which
other load does not add to, else time on the clock.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

SAME_LOSS = ["indexer.args.train=none", "router.args.balance_loss_alpha=0"]
"""What transformers' model does not train."""

SIZES: dict[str, list[str]] = {
    "smoke": ["model=micro", "data.vocab_size=512", "trainer.seq_len=64", "trainer.batch_size=1"],
    "tiny": ["model=tiny", "data.vocab_size=2048", "trainer.seq_len=512", "trainer.batch_size=8"],
    "medium": [
        "model=tiny",
        "data.vocab_size=4096",
        "model.hidden_size=256",
        "model.num_hidden_layers=12",
        "model.num_attention_heads=8",
        "model.compress_ratios='swa*2,(csa@4,hca@16)*4,csa@4,swa'",
        "model.sliding_window=128",
        "model.index_topk=64",
        "trainer.seq_len=1024",
        "trainer.batch_size=2",
    ],
}
AS_IT_COMES, TUNED, STRICT = "as it comes", "tuned", "tuned, strict float32"
CONTENDERS = [
    ("transformers", AS_IT_COMES),
    ("transformers", TUNED),
    ("transformers", STRICT),
    ("ours", AS_IT_COMES),
    ("ours", TUNED),
    ("ours", STRICT),
    ("llama", AS_IT_COMES),
    ("llama", TUNED),
]
"""Who, and with which settings: those of `ablate.runtime`, the same with PyTorch's default matrix products, or none."""


def serve(connection: Connection, who: str, settings: str, size: str, threads: int) -> None:
    """One contender: says what it is, then takes a step whenever asked."""
    import torch

    from ablate import runtime
    from ablate.speed import peak_bytes

    if settings == AS_IT_COMES:
        torch.set_num_threads(threads)
    else:
        runtime.prepare(threads)
    if settings == STRICT:
        torch.set_float32_matmul_precision("highest")
    one, machine = contender(who, size, threads)
    loss = float(one.forward().detach())
    one.step()
    connection.send({"loss": loss, "flops": one.flops, "peak": peak_bytes(one.step, machine.device)})
    while connection.recv():
        begun = machine.now()
        one.step()
        connection.send(machine.now() - begun)


def contender(who: str, size: str, threads: int) -> Any:
    """A model that trains, and the machine it is on."""
    import dataclasses

    from ablate import bench, config
    from ablate.speed import Machine

    run = config.load([*SIZES[size], *SAME_LOSS, "trainer.device=cpu"], require_sweep=False)
    run = dataclasses.replace(run, launcher=dataclasses.replace(run.launcher, threads=threads))
    machine = Machine.of(run)
    ours = bench.subject("ours", run, machine)
    if who == "transformers":
        return bench.transformers(ours, run, machine), machine
    return (llama(ours, run, machine) if who == "llama" else ours), machine


def llama(ours: Any, run: Any, machine: Any) -> Any:
    """A dense model of equal training FLOPs."""
    import torch
    from torch.nn import functional as F
    from transformers import LlamaConfig, LlamaForCausalLM

    from ablate import bench, optimization
    from ablate.speed import Subject
    from components.attention.pairs import causal_pairs

    dims, layers = ours.model.variant.dims, len(ours.model.variant.layers)
    d, tokens = dims.hidden_size, ours.tokens
    attention = 4 * d * causal_pairs(run.trainer.seq_len) * run.trainer.batch_size

    def flops(width: int) -> int:
        matrices = layers * (4 * d * d + 3 * d * width) + dims.vocab_size * d
        return 3 * (2 * matrices * tokens + layers * attention)

    width = round((ours.flops - flops(0)) / (flops(1) - flops(0)))
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=dims.vocab_size,
            hidden_size=d,
            intermediate_size=width,
            num_hidden_layers=layers,
            num_attention_heads=dims.num_attention_heads,
            head_dim=d // dims.num_attention_heads,
            max_position_embeddings=run.trainer.seq_len,
        )
    )
    inputs, labels = bench.batch(dims.vocab_size, run, machine)

    def forward() -> Any:
        logits = model(inputs, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())

    optimizer = optimization.build(model, run.optimizer)
    return Subject("llama", model, optimizer, forward, tokens, flops(width), run.optimizer.grad_clip)


def main() -> None:
    """Start everybody, let them take turns, and print how they compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", action="append", default=[], help="part of a contender's name")
    wanted = parser.parse_args()
    names = [f"{who}, {settings}" for who, settings in CONTENDERS]
    chosen = [i for i, name in enumerate(names) if not wanted.only or any(t in name for t in wanted.only)]
    os.environ["OMP_NUM_THREADS"] = str(wanted.threads)
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    facts: dict[str, dict[str, Any]] = {}
    for i in chosen:
        mine, theirs = context.Pipe()
        arguments = (theirs, *CONTENDERS[i], wanted.size, wanted.threads)
        context.Process(target=serve, args=arguments, daemon=True).start()
        theirs.close()
        ends[names[i]] = mine
        facts[names[i]] = mine.recv()  # one after the other: building is work too
    print(
        f"{wanted.size}, {wanted.threads} threads, {wanted.rounds} rounds, load before {os.getloadavg()[0]:.1f}"
    )
    times: dict[str, list[float]] = {name: [] for name in ends}
    for _ in range(wanted.rounds):
        for name, end in ends.items():
            end.send(True)
            times[name].append(end.recv())
    for end in ends.values():
        end.send(False)
    print(f"load after {os.getloadavg()[0]:.1f}; the machine has {os.cpu_count()} cores")
    report(facts, times)


def report(facts: dict[str, dict[str, Any]], times: dict[str, list[float]]) -> None:
    """Times, memory, and how many times faster one is than another."""
    print(f"\n{'':<38}{'step':>9}{'least':>9}{'GFLOP':>8}{'GFLOP/s':>9}{'peak MiB':>10}{'loss':>9}")
    for name, fact in facts.items():
        step = statistics.median(times[name])
        print(
            f"{name:<38}{step * 1e3:>6.0f} ms{min(times[name]) * 1e3:>6.0f} ms{fact['flops'] / 1e9:>8.1f}"
            f"{fact['flops'] / 1e9 / step:>9.1f}{fact['peak'] / 2**20:>10.0f}{fact['loss']:>9.4f}"
        )
    print(f"\n{'ours against':<58}{'time':>8}{'per FLOP':>10}{'peak':>7}")
    for other, own in (
        (f"transformers, {AS_IT_COMES}", f"ours, {TUNED}"),
        (f"transformers, {AS_IT_COMES}", f"ours, {AS_IT_COMES}"),
        (f"transformers, {TUNED}", f"ours, {TUNED}"),
        (f"transformers, {STRICT}", f"ours, {STRICT}"),
        (f"llama, {TUNED}", f"ours, {TUNED}"),
    ):
        if other in times and own in times:
            speedup = _ratio(times[other], times[own])
            work = facts[own]["flops"] / facts[other]["flops"]
            print(
                f"{other + '; ours ' + own.removeprefix('ours, '):<58}{speedup:>7.2f}x{speedup * work:>9.2f}x"
                f"{facts[own]['peak'] / facts[other]['peak']:>6.2f}x"
            )


def _ratio(slow: list[float], fast: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


if __name__ == "__main__":
    main()
