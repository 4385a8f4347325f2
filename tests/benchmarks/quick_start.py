"""The quick start of a large model, measured: create, slice, load by stock transformers, one forward pass.

    python tests/benchmarks/quick_start.py [MODEL] [FOLDER]

prints seconds and the peak of resident memory of every step, each in a process of its own. v4_mini_3b takes 6.4 GB of
disk for itself and 24 GiB of memory at most.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ablate import config

FORWARD = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    logits = model(torch.arange(256)[None]).logits
assert logits.isfinite().all() and logits.shape[:2] == (1, 256)
"""

SHARD = "0.5"
"""10^9 bytes of a file."""


def step(name: str, *command: str) -> None:
    """Run a command and print what it took."""
    start, process = time.monotonic(), subprocess.Popen([sys.executable, *command])
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, name
    print(f"{name:<24}{time.monotonic() - start:8.0f} s {usage.ru_maxrss / 2**20:8.2f} GiB", flush=True)


def main(model: str, folder: Path) -> None:
    """All steps in `folder`."""
    sizes = [f"model={model}", "model.vocab_size=129280"]
    command = ["-m", "ablate.cli"]
    step("ablate init", *command, "init", *sizes, "--shard-gb", SHARD, "--out", str(folder / "large"))
    whole = config.load([f"model={model}"], require_sweep=False).model
    cut = ("hidden_size", "n_routed_experts", "moe_intermediate_size")
    half = [f"model.{key}={getattr(whole, key) // 2}" for key in cut]
    to = [word for override in (*sizes, *half) for word in ("--to", override)]
    out = ["--shard-gb", SHARD, "--out", str(folder / "half")]
    step("ablate slice", *command, "slice", "--from", str(folder / "large"), *to, *out)
    step("load and forward", "-c", FORWARD, str(folder / "large"))


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "v4_mini_3b"
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as temporary:
        main(name, Path(temporary))
