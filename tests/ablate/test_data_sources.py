"""Every source gives the same documents; what cannot be read is refused with key, value, allowed, nearest."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from corpora import settings, split, texts, write_json

from ablate import data, schema
from ablate.errors import BadInputError
from ablate.home import Home

LINES = [" ".join(text.split()) for text in texts(80)]
"""Documents without line breaks, which a text file of one document per line can hold."""


def _write(folder: Path, kind: str) -> tuple[str, dict[str, Any]]:
    """Writes `LINES` as `kind`; returns a glob, and settings to read it."""
    import datasets

    table = datasets.Dataset.from_dict({"body": LINES})
    if kind == "text":
        (folder / "a [1].txt").write_text("\n".join(LINES[:40]) + "\n\n\n")
        (folder / "b.txt").write_text("\n".join(LINES[40:]))
        return "*.txt", {"source": "text"}
    if kind == "json":
        (folder / "a.json").write_text("".join(json.dumps({"body": line}) + "\n" for line in LINES))
        return "*.json", {"source": "json", "text_column": "body"}
    if kind == "parquet":
        table.select(range(40)).to_parquet(folder / "a.parquet")
        table.select(range(40, 80)).to_parquet(folder / "b.parquet")
        return "**/*.parquet", {"source": "parquet", "text_column": "body"}
    if kind == "csv":
        table.to_csv(folder / "a.csv")
        return "a.csv", {"source": "csv", "text_column": "body"}
    if kind == "saved":
        datasets.DatasetDict({"part": table}).save_to_disk(folder)
        return "", {"source": str(folder), "files": [], "text_column": "body", "split": "part"}
    if kind == "folder":
        table.to_parquet(folder / "train.parquet")
        return "", {"source": str(folder), "files": [], "text_column": "body"}
    table.save_to_disk(folder / "arrow")
    return "arrow/*.arrow", {"source": "arrow", "text_column": "body"}


@pytest.mark.parametrize("kind", ["text", "json", "parquet", "csv", "arrow", "saved", "folder"])
def test_every_source_gives_the_documents_in_order(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    pattern, changes = _write(folder, kind)
    before = sorted(tmp_path.rglob("*"))
    read = settings(folder / pattern, **changes)
    prepared = data.prepare(read, Home(tmp_path / "home"))
    train, val = split(prepared)
    assert train == [line for line in LINES if line in set(train)]
    assert sorted(train + val) == sorted(LINES)
    assert (
        sorted(path for path in tmp_path.rglob("*") if tmp_path / "home" not in (path, *path.parents))
        == before
    )


def test_files_are_read_in_the_order_of_the_patterns_each_once(tmp_path: Path) -> None:
    for name, part in (("a", LINES[:40]), ("b", LINES[40:])):
        (tmp_path / f"{name}.txt").write_text("\n".join(part))
    patterns = [str(tmp_path / "b.txt"), str(tmp_path / "*.txt")]
    train, _ = split(data.prepare(settings(tmp_path, source="text", files=patterns), Home(tmp_path / "home")))
    assert train == [line for line in LINES[40:] + LINES[:40] if line in set(train)]


def test_max_bytes_caps_in_whole_documents(tmp_path: Path) -> None:
    path = write_json(tmp_path, LINES)
    for cap in (2000, 5000):
        train, val = split(
            data.prepare(settings(path, max_bytes=cap, val_fraction=0.4), Home(tmp_path / "home"))
        )
        taken = [line for line in LINES if line in set(train + val)]
        assert taken == LINES[: len(taken)]
        size = sum(len(line.encode()) for line in taken)
        assert size <= cap < size + len(LINES[len(taken)].encode())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "stdlb", "files": []}, ["data.source=stdlb", "Did you mean 'stdlib'", "parquet"]),
        ({"source": "txt"}, ["data.source=txt", "Did you mean 'text'"]),
        ({"source": "{}/foldr", "files": []}, ["data.source={}/foldr", "Did you mean '{}/folder'"]),
        ({"source": "stdlib"}, ["data.files=", "stdlib", "data.files=[]"]),
        ({"files": []}, ["data.files=[]", "data.source=json"]),
        (
            {"files": ["{}/documnts.jsonl"]},
            ["data.files={}/documnts.jsonl", "Did you mean '{}/documents.jsonl'"],
        ),
        ({"files": ["{}/foldr/*.txt"]}, ["data.files={}/foldr/*.txt", "Did you mean '{}/folder'"]),
        ({"files": ["{}/folder"]}, ["data.files={}/folder", "is a folder", "{}/folder/*.txt"]),
        ({"tokenizer": "bep"}, ["data.tokenizer=bep", "Did you mean 'bpe'", "bytes"]),
        ({"tokenizer": "{}/tokenizr"}, ["data.tokenizer={}/tokenizr", "Did you mean '{}/tokenizer'"]),
        ({"tokenizer": "{}/folder"}, ["data.tokenizer={}/folder", "tokenizer.json"]),
    ],
)
def test_what_is_not_there_fails_in_the_plan(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    for name in ("folder", "tokenizer"):
        (tmp_path / name).mkdir()
    path = write_json(tmp_path, LINES)
    before = sorted(tmp_path.rglob("*"))
    changes = json.loads(json.dumps(changes).replace("{}", str(tmp_path)))
    wrong = settings(path, **changes)
    for ask in (data.fingerprint, lambda one: data.prepare(one, Home(tmp_path / "home"))):
        with pytest.raises(BadInputError) as caught:
            ask(wrong)
        for word in words:
            assert word.replace("{}", str(tmp_path)) in str(caught.value)
    if "tokenizer" in changes:
        with pytest.raises(BadInputError, match=r"data\.tokenizer="):
            data.vocab_size(wrong)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_column": "txt"}, ["data.text_column=txt", "text, n", "Did you mean 'text'"]),
        ({"split": "trian"}, ["data.split=trian", "Did you mean 'train'"]),
        ({"source": "stdlib", "files": [], "split": "test"}, ["data.split=test", "train"]),
        ({"files": ["{}/empty.jsonl"]}, ["data.files=", "has no documents", "empty.jsonl"]),
        ({"files": ["{}/broken.jsonl"]}, ["data.source=json", "cannot be read", "broken.jsonl"]),
        ({"source": "parquet"}, ["data.source=parquet", "cannot be read"]),
        ({"text_column": "n"}, ["data.text_column=n", "holds int", "text"]),
        ({"tokenizer": "{}/broken.jsonl"}, ["data.tokenizer=", "broken.jsonl", "cannot be read"]),
    ],
)
def test_what_cannot_be_read_fails_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    path = write_json(tmp_path, LINES)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text("{not json")
    changes = json.loads(json.dumps(changes).replace("{}", str(tmp_path)))
    with pytest.raises(BadInputError) as caught:
        data.prepare(settings(path, **changes), Home(tmp_path / "home"))
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "home").exists()


def test_a_split_with_an_empty_side_is_refused_with_a_fraction_that_works(tmp_path: Path) -> None:
    path = write_json(tmp_path, LINES[:6])
    home = Home(tmp_path / "home")
    with pytest.raises(BadInputError, match=r"data\.val_fraction=1e-06 .*none of 6 documents") as caught:
        data.prepare(settings(path, val_fraction=1e-6), home)
    assert not [found for found in home.tokens.iterdir() if found.suffix != ".lock"]
    works = float(str(caught.value).split("more than ")[1].rstrip("."))
    assert len(split(data.prepare(settings(path, val_fraction=works + 1e-4), home))[1]) == 1


def test_the_hub_out_of_reach_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    hub = schema.Data(source="nobody/nothing")
    assert data.fingerprint(hub)
    with pytest.raises(BadInputError, match=r"data\.source=nobody/nothing cannot be read .*Offline"):
        data.prepare(hub, Home(tmp_path / "home"))
    assert not (tmp_path / "home").exists()


def test_the_command_shows_a_corpus(tmp_path: Path) -> None:
    path = write_json(tmp_path, LINES)
    command = [
        sys.executable,
        "-m",
        "ablate.cli",
        "data",
        "show",
        "data=text",
        f"data.files=[{path}]",
        "--json",
    ]
    environment = {**os.environ, "ABLATE_HOME": str(tmp_path / "home")}
    command += ["data.source=json", "data.tokenizer=bytes", "data.val_fraction=0.2"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    read = schema.Data(source="json", files=[str(path)], tokenizer="bytes", val_fraction=0.2)
    assert facts["fingerprint"] == data.fingerprint(read)
    assert facts["train"]["documents"] + facts["val"]["documents"] == len(LINES)
