"""The command answers at once because it imports nothing heavy until a subcommand needs it."""

import subprocess
import sys
import time

HEAVY = (
    "torch",
    "lightning",
    "hydra",
    "omegaconf",
    "optuna",
    "mlflow",
    "datasets",
    "plotly",
    "pandas",
    "scipy",
    "numpy",
)


def test_importing_the_command_and_the_light_modules_imports_nothing_heavy() -> None:
    code = (
        "import sys, ablate, ablate.cli, ablate.schema, ablate.home, ablate.errors, ablate.units\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_is_fast_and_names_every_command() -> None:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "ablate.cli", "--help"], capture_output=True, text=True, check=True
    )
    # 0.25 s on an idle core; the margin is for busy ones
    assert time.perf_counter() - start < 3
    for command in (
        "run",
        "plan",
        "resume",
        "worker",
        "status",
        "report",
        "dashboard",
        "mlflow",
        "list",
        "show",
        "generate",
        "export",
        "bench",
        "doctor",
    ):
        assert command in done.stdout


def test_public_names_are_lazy_and_there() -> None:
    code = (
        "import ablate; import sys; "
        "print([callable(getattr(ablate, name)) for name in ablate.__all__], 'plotly' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[True, True, True, True] False"


def test_a_stranger_with_our_package_name_is_refused(tmp_path) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "__init__.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import ablate"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "another distribution installed the same top-level name" in done.stderr
