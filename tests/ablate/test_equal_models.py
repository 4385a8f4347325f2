"""A real sweep whose arms are the same model: no verdict may tell them apart."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TWIN = '''
"""SwiGLU under other names of its parameters, which are therefore drawn independently at the start."""

from jaxtyping import Float, Int
from torch import Tensor

from components.ffn.dense import DenseFFN, dense_cost
from components.ffn.swiglu import SwiGLU
from components.registry import register
from components.slots import Aux
from components.spec import Cost, Site


@register("swiglu_twin", source="the same as swiglu")
class Twin(SwiGLU):
    """As `swiglu`, letter for letter, but for the name of its one module."""

    def __init__(self, config: DenseFFN.Config, site: Site) -> None:
        super().__init__(config, site)
        self.twin = self.expert
        del self.expert

    def forward(
        self, x: Float[Tensor, "b s d"], token_ids: Int[Tensor, "b s"]
    ) -> tuple[Float[Tensor, "b s d"], Aux]:
        return self.twin(x), {}

    @staticmethod
    def cost(config: DenseFFN.Config, site: Site, seq_len: int) -> Cost:
        return dense_cost("swiglu", config, site, seq_len)
'''
SWEEP = """
# @package _global_
# Is a model better than itself?
defaults:
  - override /model: micro
  - override /budget: smoke
plugins: [twin_file]
ffn: swiglu
sweep:
  question: Is a model better than itself?
  baseline: model
  arms:
    model: {}
    drawn_again: {ffn: swiglu_twin}
  search: {points: 5, extensions: 0}
  confirm: {replicates: 6, margin: 0.05}
model: {compress_ratios: "dense*2", num_hidden_layers: 2, num_hash_layers: 0}
trainer: {seq_len: 32, batch_size: 2, evals: 2}
budget: {per_trial: 16 GFLOP}
data: {tokenizer: bytes, val_tokens: 8192, max_bytes: 2000000}
tracking: {enabled: false}
"""


@pytest.mark.slow
def test_a_model_is_neither_better_nor_worse_than_itself(tmp_path: Path) -> None:
    """The arms differ in what their weights begin with, as two seeds do, and are tuned like any others."""
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "equal.yaml").write_text(SWEEP)
    (tmp_path / "twin_file.py").write_text(TWIN)
    environment = {
        **os.environ,
        "ABLATE_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }

    def ablate(*args: str) -> str:
        command = [sys.executable, "-m", "ablate.cli", *args]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    ablate("run", "sweep=equal", "--config-dir", str(tmp_path))
    status = json.loads(ablate("status", "--json"))
    (found,) = status["verdicts"]
    print(found["sentence"])
    assert found["kind"] in ("equivalent", "inconclusive")
    assert found["sd"] > 0
    assert not [caveat for caveat in found["caveats"] if caveat["blocks"]], (
        "it is the difference that decides"
    )
