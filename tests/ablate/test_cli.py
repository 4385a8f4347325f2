"""The command as people meet it: exit codes, one message, no traceback, nothing written for bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ablate import show as shows


def _ablate(home: Path, *args: str, columns: str = "160") -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "ABLATE_HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": columns,
        "NO_COLOR": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "ablate.cli", *args],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["model.hiden_size=2"], ["model.hiden_size=2", "model.hidden_size"]),
        (["modle=micro"], ["modle=micro", "model"]),
        (["residual=mch"], ["residual=mch", "mhc", "prenorm"]),
        (["model.compress_ratios=csa@4*3", "~sweep.arms.csa", "sweep.arms.short={}"], ["3", "4"]),
        (["sweep.arms.csa={model.compress_ratios: csa@512*4}"], ["512", "64"]),
        (["budget.per_trial=2e6"], ["budget.per_trial=2", "Smallest that works"]),
        (["data=text", "data.files=[/no/such/file.txt]"], ["/no/such/file.txt"]),
        (["trainer.batch_size=-1"], ["trainer.batch_size=-1", "at least 1"]),
        (["home=/proc/nowhere"], ["home=/proc/nowhere", "ABLATE_HOME"]),
    ],
    ids=["key", "group", "component", "length", "ratio", "budget", "path", "range", "home"],
)
def test_bad_input_ends_with_two_and_one_message_and_writes_nothing(
    tmp_path: Path, args: list[str], words: list[str]
) -> None:
    home = tmp_path / "home"
    done = _ablate(home, "run", "sweep=smoke", *args)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert not home.exists()


def test_a_home_that_cannot_be_written_ends_with_two(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = _ablate(tmp_path / "file", "run", "sweep=smoke")
    assert done.returncode == 2
    assert "cannot be written to" in done.stderr
    assert str(tmp_path / "file") in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = _ablate(tmp_path, "--debug", "plan", "sweep=smoke", "modle=micro")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_a_mistyped_command_is_corrected(tmp_path: Path) -> None:
    done = _ablate(tmp_path, "runn")
    assert done.returncode == 2
    assert "run" in done.stderr


def test_plan_as_json_is_one_document_and_writes_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = _ablate(home, "plan", "sweep=smoke", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert {arm["name"] for arm in plan["arms"]} == {"sliding_window", "csa"}
    assert plan["total_mflop"] >= sum(plan["caps"].values())
    assert not home.exists()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("components", ["residual", "mhc", "DeepSeek"]),
        ("router", ["hash", "learned"]),
        ("models", ["v4_mini_3b", "micro"]),
        ("sweeps", ["compress_ratios", "smoke"]),
        ("data", ["stdlib"]),
        ("studies", ["none yet"]),
    ],
)
def test_list(tmp_path: Path, what: str, words: list[str]) -> None:
    done = _ablate(tmp_path, "list", what)
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout
    assert isinstance(json.loads(_ablate(tmp_path, "list", what, "--json").stdout), list)


def test_list_of_an_unknown_kind(tmp_path: Path) -> None:
    done = _ablate(tmp_path, "list", "modles")
    assert done.returncode == 2
    assert "models" in done.stderr


def test_show_prices_the_mini_model_exactly_without_allocating_it(tmp_path: Path) -> None:
    done = _ablate(tmp_path, "show", "model=v4_mini_3b", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["backbone"]["params"] == 3_066_509_741
    assert shown["total_params"] == 3_165_669_952
    assert shown["backbone"]["active_params"] == 1_084_701_101
    assert shown["total_active_params"] == 1_113_082_432
    assert sum(row["params"] for row in shown["components"]) == 3_066_509_741


@pytest.mark.parametrize("columns", ["80", "120"])
def test_show_never_cuts_a_number(tmp_path: Path, columns: str) -> None:
    done = _ablate(tmp_path, "show", "model=v4_mini_3b", columns=columns)
    for number in ("3,066,509,741", "1,084,701,101", "3,165,669,952", "1,113,082,432"):
        assert number in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= int(columns)


@pytest.mark.parametrize(
    ("name", "params", "active"),
    [("v4_flash", 284_332_230_231, 13_799_622_231), ("v4_pro", 1_572_997_179_491, 49_779_058_787)],
)
def test_show_prices_the_official_models(tmp_path: Path, name: str, params: int, active: int) -> None:
    shown = json.loads(_ablate(tmp_path, "show", f"model={name}", "--json").stdout)
    assert (shown["backbone"]["params"], shown["backbone"]["active_params"]) == (params, active)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("model=micro", ["schedule", "backbone", "csa", "ratio 4"]),
        ("model=v4_mini_3b", ["3,066,509,741", "3,165,669,952"]),
        ("residual/mhc", ["hc_mult", "hc_sinkhorn_iters"]),
        ("sweep=compress_ratios", ["dense", "baseline", "hca@16*4"]),
    ],
)
def test_show_for_people(tmp_path: Path, what: str, words: list[str]) -> None:
    done = _ablate(tmp_path, "show", what)
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout


@pytest.mark.parametrize(
    ("what", "word"), [("residual/mch", "mhc"), ("nothing", "model=NAME"), ("model=mirco", "micro")]
)
def test_show_of_nothing(tmp_path: Path, what: str, word: str) -> None:
    done = _ablate(tmp_path, "show", what)
    assert done.returncode == 2
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor(tmp_path: Path) -> None:
    done = _ablate(tmp_path, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "torch" in done.stdout
    (tmp_path / "ablate.db").write_text("not a database")
    broken = _ablate(tmp_path, "doctor")
    assert broken.returncode == 1
    assert "FAIL study database" in broken.stdout


@pytest.mark.parametrize(
    ("topk", "ratio", "seq_len", "until"),
    [(192, 4, 4096, 771), (192, 4, 776, 771), (192, 4, 771, None), (10, 7, 4096, 76)],
)
def test_show_says_up_to_where_indexers_have_nothing_to_choose(
    topk: int, ratio: int, seq_len: int, until: int | None
) -> None:
    """The token after that number is the first to close more blocks than may be chosen."""
    assert until is None or (until // ratio, (until + 1) // ratio) == (topk, topk + 1)
    sizes = [
        f"model.index_topk={topk}",
        f"model.compress_ratios=swa*2,csa@{ratio}*",
        f"trainer.seq_len={seq_len}",
    ]
    shown = shows.show(["model=v4_mini_3b", *sizes], [])
    said = [text for text in shown.data["warnings"] if text.startswith("indexer")]
    assert len(said) == 1
    assert (f"first {until} tokens" in said[0]) if until else (f"index_topk={topk} has no effect" in said[0])
