"""Provenance: complete, quick, and without anything private."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ablate import provenance


def test_facts_about_code_libraries_and_machine():
    facts = provenance.collect()
    assert {"python", "torch", "lightning", "optuna", "mlflow", "os", "cpu", "cores"} <= facts.keys()
    assert all(isinstance(value, str) and value for value in facts.values())


def test_quick_and_without_heavy_imports():
    code = (
        "import time, sys; from ablate import provenance; t = time.perf_counter(); provenance.collect();"
        "print(time.perf_counter() - t, 'torch' in sys.modules, 'mlflow' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(out[0]) < 0.5  # tens of milliseconds on a quiet machine
    assert out[1:] == ["False", "False"]


def test_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ABLATE_TEST_SECRET", "s3cr3t-value")
    text = " ".join(provenance.collect().values())
    assert "s3cr3t-value" not in text
    assert os.path.expanduser("~") not in text or os.path.expanduser("~") == "/"


def test_commit_and_changes(tmp_path: Path):
    assert "git_commit" not in provenance.collect(tmp_path)

    def git(*args: str) -> str:
        settings = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        done = subprocess.run(
            ["git", *settings, *args], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "a.py").write_text("a = 1\n")
    git("add", "a.py")
    git("commit", "-q", "-m", "first")
    clean = provenance.collect(tmp_path)
    assert (clean["git_commit"], clean["git_dirty"]) == (git("rev-parse", "HEAD"), "false")
    (tmp_path / "a.py").write_text("a = 2\n")
    assert provenance.collect(tmp_path)["git_dirty"] == "true"


def test_a_missing_git_is_no_trouble(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    begun = time.perf_counter()
    assert "git_commit" not in provenance.collect()
    assert time.perf_counter() - begun < 1
