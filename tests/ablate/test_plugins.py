"""A component from somebody else's package: one file, installed or named, used without touching this repository."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from variants import make_run

from ablate import config, schema
from ablate.errors import BadInputError
from ablate.schema import Slot
from components import registry

COMPONENT = '''
"""A norm with one gain for all channels."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from components.registry import register
from components.slots import Norm
from components.spec import Cost, Site, searchable


@register("one_gain", source="Acme technical report 7")
class OneGain(Norm):
    """`g x / rms(x)`: one learned gain instead of one per channel."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        gain_init: float = searchable(1.0, low=0.1, high=2.0, log=True)

    def __init__(self, config: Config, site: Site, size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((1,), config.gain_init))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return self.gain * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    @staticmethod
    def cost(config: Config, site: Site, seq_len: int) -> Cost:
        return Cost(params=1, active_params=1)
'''
PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "acme-norms"
version = "1.0"

[project.entry-points."ablate.components"]
acme = "acme_norms"
"""
SWEEP = """
# @package _global_
# Is one gain enough?
defaults:
  - override /model: micro
  - override /budget: smoke
  - override /data: text
plugins: {plugins}
sweep:
  question: Is one gain enough?
  baseline: rmsnorm
  arms:
    rmsnorm: {{}}
    one_gain: {{norm: one_gain, norm.args.gain_init: 0.5}}
  search: {{points: 5, extensions: 0}}
  confirm: {{replicates: 2}}
trainer: {{seq_len: 32, batch_size: 1, evals: 1}}
budget: {{per_trial: 0.2 GFLOP}}
data: {{tokenizer: bytes, val_tokens: 64}}
launcher: {{workers: 1}}
tracking: {{enabled: false}}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed as pip installs it, and nothing else."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "acme_norms").mkdir()
    (source / "acme_norms" / "__init__.py").write_text("")
    (source / "acme_norms" / "one_gain.py").write_text(COMPONENT)
    (source / "pyproject.toml").write_text(PYPROJECT)
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--quiet", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True, timeout=300)
    return target


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's own folder of sweeps."""
    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "sweep").mkdir()
    (folder / "sweep" / "found.yaml").write_text(SWEEP.format(plugins="[]"))
    (folder / "sweep" / "named.yaml").write_text(SWEEP.format(plugins="[acme_file]"))
    return folder


def _ablate(home: Path, path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "ABLATE_HOME": str(home),
        "PYTHONPATH": str(path),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
    }
    return subprocess.run(
        [sys.executable, "-m", "ablate.cli", *args],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


def _text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text("".join(f"Line {i} of a text.\n" for i in range(400)))
    return f"data.files=[{tmp_path / 'text.txt'}]"


def test_an_installed_component_is_listed_and_planned(installed: Path, sweeps: Path, tmp_path: Path) -> None:
    listed = json.loads(_ablate(tmp_path, installed, "list", "norm", "--json").stdout)
    (row,) = [row for row in listed if row["name"] == "one_gain"]
    assert row["source"] == "Acme technical report 7"
    done = _ablate(
        tmp_path, installed, "plan", "sweep=found", "--config-dir", str(sweeps), _text(tmp_path), "--json"
    )
    assert done.returncode == 0, done.stderr
    plain, other = (arm["variant"] for arm in json.loads(done.stdout)["arms"])
    assert ["norm", "one_gain", {"gain_init": 0.5}] in other["slots"]
    assert plain["fingerprint"] != other["fingerprint"]


def test_a_process_that_reads_a_stored_run_imports_what_the_run_names(tmp_path: Path) -> None:
    """As workers do, which see no command line."""
    (tmp_path / "acme_file.py").write_text(COMPONENT)
    run = dataclasses.replace(make_run(norm=Slot("one_gain")), plugins=["acme_file"])
    code = (
        "import json, sys; from ablate import schema; from ablate.variant import Variant; "
        "run = schema.from_dict(json.load(sys.stdin)); "
        "print(Variant.from_run(run).part('norm', Variant.from_run(run).layers[0]).build().gain.item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(schema.to_dict(run)),
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "1.0", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("sweep", ["found", "named"])
def test_a_sweep_trains_it_in_worker_processes(
    installed: Path, sweeps: Path, tmp_path: Path, sweep: str
) -> None:
    """Installed with an entry point, or one file on the path that the sweep names under `plugins`."""
    path = installed
    if sweep == "named":
        path = tmp_path / "path"
        path.mkdir()
        (path / "acme_file.py").write_text(COMPONENT)
    home = tmp_path / "home"
    done = _ablate(home, path, "run", f"sweep={sweep}", "--config-dir", str(sweeps), _text(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    status = json.loads(_ablate(home, path, "status", "--json").stdout)
    assert status["state"] == "done"
    losses = {
        arm: [row["result"]["val_loss"] for row in status["trials"] if row["spec"]["arm"] == arm]
        for arm in ("rmsnorm", "one_gain")
    }
    assert len(losses["rmsnorm"]) == len(losses["one_gain"]) == 7
    assert set(losses["rmsnorm"]).isdisjoint(losses["one_gain"])


def test_a_sweep_says_which_packages_it_needs(sweeps: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"plugins=acme_file cannot be imported: No module named"):
        config.load(["sweep=named"], [sweeps])


def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken.py").write_text("import no_such_module_of_acme\n")
    (tmp_path / "twice.py").write_text(COMPONENT.replace("one_gain", "rmsnorm"))
    for name, why in (("broken", "no_such_module_of_acme"), ("twice", "norm/rmsnorm is already registered")):
        with pytest.raises(BadInputError, match=f"plugins={name} cannot be imported: .*{why}"):
            config.load(["model=micro", f"plugins=[{name}]"], require_sweep=False)
    info = tmp_path / "acme_broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ablate.components]\nbroken = broken\n")
    monkeypatch.setattr(registry, "_loaded", registry._loaded - {registry.ENTRY_POINT_GROUP})
    said = "entry point broken of acme-broken: broken cannot be imported"
    with pytest.raises(BadInputError, match=said):
        config.load(["model=micro"], require_sweep=False)
