"""Completion of overrides: right, quick, and in a real shell."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from ablate import completion, config, schema
from components import registry


@pytest.mark.parametrize(
    ("incomplete", "expected"),
    [
        ("tr", "trainer="),
        ("residual=m", "residual=mhc"),
        ("residual.args.hc_m", "residual.args.hc_mult="),
        ("sweep=c", "sweep=compress_ratios"),
        ("model.hid", "model.hidden_size="),
        ("sweep.confirm.r", "sweep.confirm.replicates="),
        ("budget.match=t", "budget.match=tokens"),
        ("optimizer=m", "optimizer=muon"),
        ("optimizer.l", "optimizer.lr="),
        ("optimizer.args.newton", "optimizer.args.newton_schulz="),
    ],
)
def test_completion(incomplete: str, expected: str) -> None:
    found = completion.complete(incomplete)
    assert expected in found
    assert all(text.startswith(incomplete) for text in found)


def test_a_group_that_fits_alone_is_continued_by_its_options() -> None:
    assert completion.complete("swee") == [f"sweep={name}" for name in sorted(config.options("sweep"))]
    assert completion.complete("nothing") == completion.complete("nothing=x") == []


def test_groups_and_options_are_those_of_the_configuration() -> None:
    groups = {text.rstrip("=") for text in completion.complete("")}
    assert groups == {*config.GROUPS, *schema.SLOT_GROUPS}
    for group in groups:
        offered = {text.partition("=")[2] for text in completion.complete(f"{group}=")}
        assert offered == set(config.options(group)), group


def test_options_of_a_slot_are_those_of_its_components() -> None:
    expected = {
        f"ffn.args.{field.name}="
        for entry in registry.entries("ffn")
        for field in dataclasses.fields(entry.cls.Config)
    }
    assert set(completion.complete("ffn.args.")) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["plan", "swee"], ["sweep=compress_ratios", "sweep=smoke"]),
        (["plan", "sweep", "="], ["compress_ratios", "smoke"]),
        (["plan", "sweep", "=", "smo"], ["smoke"]),
        (["plan", "sweep", "=", "smoke", "residual", "=", "m"], ["mhc"]),
        (["plan", "sweep", "=", "smoke", "trainer.prec"], ["trainer.precision=bf16-mixed"]),
        (["pla"], ["plan"]),
    ],
)
def test_bash_completes_though_it_splits_at_equal_signs(words: list[str], expected: list[str]) -> None:
    command = Path(sys.executable).parent / "ablate"
    script = (
        f'eval "$(_ABLATE_COMPLETE=source_bash {command})"; COMP_WORDS=(ablate "$@"); COMP_CWORD=$#; '
        f'_ablate_completion {command}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", *words], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    found = done.stdout.split()
    assert set(expected) <= set(found)
    assert all(text.startswith(words[-1].strip("=")) for text in found)


def test_completing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from ablate import completion\n"
        "for text in ('', 'swe', 'sweep=', 'residual=', 'model.hid', 'budget.match='):\n"
        "    assert completion.complete(text), text\n"
        "print([name for name in ('torch', 'hydra', 'omegaconf', 'optuna') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
