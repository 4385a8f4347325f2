"""Preparing a corpus: what goes in comes out, held-out documents are apart, and it happens once."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpora import PLAIN, settings, split, texts, write_json
from corpora import corpus as generated
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from ablate import data, schema
from ablate.data import preparation
from ablate.home import Home


def _word_level(folder: Path, normal: bool = True, special: tuple[str, ...] = ("[UNK]",)) -> Path:
    """A tokenizer folder as others publish them: it drops and rewrites characters, cuts, and adds tokens."""
    from tokenizers import processors

    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    if normal:
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(
        texts(20, words=PLAIN), trainers.WordLevelTrainer(vocab_size=50, special_tokens=list(special))
    )
    if "[CLS]" in special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A", special_tokens=[("[CLS]", tokenizer.token_to_id("[CLS]"))]
        )
    tokenizer.enable_truncation(8)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("tokenizer", ["bpe", "bytes"])
def test_text_that_goes_in_comes_out_in_order_and_on_one_side(tmp_path: Path, tokenizer: str) -> None:
    documents = [*texts(), "", texts()[0], "\ufeff\x00\u2028 \n\n"]
    path = write_json(tmp_path, documents)
    prepared = data.prepare(settings(path, tokenizer=tokenizer, vocab_size=300), Home(tmp_path / "home"))
    train, val = split(prepared)
    assert not set(train) & set(val)
    assert train == [text for text in documents if text in set(train)]
    assert val == [text for text in documents if text in set(val)]
    assert len(train) + len(val) == len(documents) - 1  # the empty one is none
    assert prepared.facts["train"]["documents"] == len(train)
    assert prepared.facts["val"]["bytes"] == sum(len(text.encode()) for text in val)
    assert prepared.vocab_size > max(prepared.train.max(), prepared.val.max())
    assert prepared.train_tokens == len(prepared.train)


def test_bytes_are_bytes(tmp_path: Path) -> None:
    prepared = generated(tmp_path)
    train, _ = split(prepared)
    expected = [[*text.encode(), 256] for text in train]
    assert prepared.train.tolist() == [token for tokens in expected for token in tokens]
    assert prepared.vocab_size == 257


def test_the_split_follows_the_fraction_and_the_text(tmp_path: Path) -> None:
    path = write_json(tmp_path, texts(1000))
    small = split(data.prepare(settings(path, val_fraction=0.1), Home(tmp_path)))[1]
    large = split(data.prepare(settings(path, val_fraction=0.3), Home(tmp_path)))[1]
    assert set(small) < set(large)
    assert 60 < len(small) < 140  # 4 standard deviations
    assert 240 < len(large) < 360
    more = write_json(tmp_path, texts(1000) + texts(200, seed=1))
    grown = split(data.prepare(settings(more, val_fraction=0.1), Home(tmp_path)))[1]
    assert set(small) <= set(grown)


def test_bpe_learns_from_training_documents_alone_and_always_the_same(tmp_path: Path) -> None:
    path = write_json(tmp_path, texts(200))
    bpe: dict[str, Any] = {"tokenizer": "bpe", "vocab_size": 400}
    first = data.prepare(settings(path, **bpe), Home(tmp_path / "a"))
    again = data.prepare(settings(path, **bpe), Home(tmp_path / "b"))
    train, val = split(first)
    without = tmp_path / "without"
    without.mkdir()
    # other held-out text of the same documents' places: training text, and so the tokenizer, stays the same
    same = data.prepare(settings(write_json(without, [*train, val[0]]), **bpe), Home(tmp_path / "c"))
    for other in (again, same):
        assert first.tokenizer_path.read_bytes() == other.tokenizer_path.read_bytes()
        assert np.array_equal(first.train, other.train)
    assert first.bytes_per_token > 1.5


def test_validation_bytes_are_those_of_its_labels(tmp_path: Path) -> None:
    for tokenizer in ("bpe", "bytes"):
        held = generated(tmp_path / tokenizer, tokenizer=tokenizer, vocab_size=300)
        blocks = held.validation(32, 320)
        reading = Tokenizer.from_file(str(held.tokenizer_path))
        # each character of a byte-level token stands for one byte; the end token stands for no text
        tokens = [reading.id_to_token(i) for i in blocks.labels.flatten().tolist()]
        assert blocks.bytes == sum(len(token) for token in tokens if token != "<|endoftext|>")


def test_bytes_add_up_where_a_tokenizer_drops_and_rewrites_characters(tmp_path: Path) -> None:
    folder = _word_level(tmp_path / "words")
    documents = texts(words=PLAIN)
    read = settings(write_json(tmp_path, documents), tokenizer=str(folder))
    prepared = data.prepare(read, Home(tmp_path / "home"))
    sizes = np.fromfile(prepared.folder / "val_bytes.bin", dtype=np.uint32)
    ends = np.flatnonzero(prepared.val == prepared.facts["end_id"])
    per_document = np.add.reduceat(sizes, [0, *(ends[:-1] + 1)])
    assert per_document.tolist() == [
        len(text.encode()) for text in documents if preparation.position(text) < 0.2
    ]
    whole = prepared.validation(1, 10**9)
    assert whole.bytes == sizes[1:].sum()


@pytest.mark.parametrize(
    ("special", "config", "end", "added"),
    [
        (("[UNK]",), None, "<|endoftext|>", 1),
        (("[UNK]", "[CLS]", "[SEP]"), None, "[SEP]", 0),
        (("[UNK]", "</s>", "<eot>"), '{"eos_token": "<eot>"}', "<eot>", 0),
        (("[UNK]", "</s>", "<eot>"), '{"eos_token": {"content": "<eot>"}}', "<eot>", 0),
    ],
)
def test_tokenizers_of_others(
    tmp_path: Path, special: tuple[str, ...], config: str | None, end: str, added: int
) -> None:
    folder = _word_level(tmp_path / "words", special=special)
    if config:
        (folder / "tokenizer_config.json").write_text(config)
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    path = write_json(tmp_path, texts(words=PLAIN))
    prepared = data.prepare(settings(path, tokenizer=str(folder)), Home(tmp_path / "home"))
    by_file = settings(path, tokenizer=str(folder / "tokenizer.json"))
    assert data.vocab_size(by_file) == prepared.vocab_size == own.get_vocab_size() + added
    saved = Tokenizer.from_file(str(prepared.tokenizer_path))
    assert saved.id_to_token(prepared.facts["end_id"]) == end
    # no template, nothing cut, and an end token only where a document ends
    for name, tokens in (("train", prepared.train), ("val", prepared.val)):
        assert (tokens == prepared.facts["end_id"]).sum() == prepared.facts[name]["documents"]
    if "[CLS]" in special:
        assert own.token_to_id("[CLS]") not in prepared.train
    assert prepared.train_tokens > 10 * prepared.facts["train"]["documents"]


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    prepared = generated(tmp_path, tokenizer="bpe", vocab_size=70000)
    assert prepared.facts["dtype"] == "uint32"
    assert prepared.vocab_size == 70000
    assert split(prepared)[1]


def test_the_second_time_nothing_is_read_again_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = generated(tmp_path)
    files = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    monkeypatch.setitem(sys.modules, "datasets", None)  # any import of it fails
    start = time.process_time()
    second = generated(tmp_path)
    assert time.process_time() - start < 0.5
    assert second == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == files
    assert {path.name for path in first.folder.parent.iterdir()} == {
        first.fingerprint,
        f"{first.fingerprint}.lock",
    }


def test_processes_that_prepare_at_once_share_one_result(tmp_path: Path) -> None:
    path = write_json(tmp_path, texts(400))
    code = (
        "import sys; from pathlib import Path; from corpora import settings\n"
        "from ablate import data; from ablate.home import Home\n"
        "read = settings(Path(sys.argv[1]), tokenizer='bpe', vocab_size=500)\n"
        "c = data.prepare(read, Home(Path(sys.argv[2])))\n"
        "print(c.fingerprint, c.folder.stat().st_ino, c.batch(1, 2, 3, 4).inputs.tolist())"
    )
    tests = str(Path(__file__).parents[1])
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {tests!r})\n{code}",
        str(path),
        str(tmp_path / "home"),
    ]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert outputs[0] == outputs[1] != ""


def test_what_a_dead_process_left_is_replaced(tmp_path: Path) -> None:
    path = write_json(tmp_path, texts())
    home = Home(tmp_path / "home")
    left = home.tokens / f"{data.fingerprint(settings(path))}.part"
    left.mkdir(parents=True)
    (left / "train.bin").write_bytes(b"torn")
    prepared = data.prepare(settings(path), home)
    assert not left.exists()
    assert split(prepared)[0]


def test_the_fingerprint_follows_what_decides_tokens_and_nothing_else(tmp_path: Path) -> None:
    path = write_json(tmp_path, texts())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    copy = write_json(elsewhere, texts())
    reference = data.fingerprint(settings(path))
    for same in (settings(copy), settings(path, val_tokens=7), settings(path, vocab_size=999)):
        assert data.fingerprint(same) == reference
    words, others = _word_level(tmp_path / "w"), _word_level(tmp_path / "o", normal=False)
    changed = [
        settings(path, val_fraction=0.3),
        settings(path, max_bytes=500),
        settings(path, text_column="n"),
        settings(path, source="text"),
        settings(path, split="test"),
        settings(path, tokenizer="bpe"),
        settings(path, tokenizer="bpe", vocab_size=999),
        settings(path, tokenizer=str(words)),
        settings(path, tokenizer=str(others)),
        settings(write_json(elsewhere, [*texts(), "more"])),
        schema.Data(source="some/hub-set"),
        schema.Data(source="some/hub-set", config_name="en"),
    ]
    found = [data.fingerprint(one) for one in changed]
    assert len({reference, *found}) == len(changed) + 1


def test_the_standard_library_is_a_corpus(tmp_path: Path) -> None:
    library = schema.Data(name="stdlib", max_bytes=700_000, vocab_size=600)
    prepared = data.prepare(library, Home(tmp_path))
    train, val = split(prepared)
    assert sum(len(text.encode()) for text in train + val) <= 700_000
    import argparse

    source = Path(argparse.__file__).read_text()
    assert source in (val if preparation.position(source) < library.val_fraction else train)
    batch = prepared.batch(0, 0, 4, 128)
    assert batch.inputs.shape == (4, 128)
    assert isinstance(batch.inputs, torch.Tensor)


def test_the_fingerprint_of_the_standard_library_is_quick_and_writes_nothing(tmp_path: Path) -> None:
    whole = schema.Data(name="stdlib")
    data.fingerprint(whole)
    start = time.process_time()
    first = data.fingerprint(whole)
    assert time.process_time() - start < 1
    assert first == data.fingerprint(dataclasses.replace(whole, name="other"))


def test_description(tmp_path: Path) -> None:
    path = write_json(tmp_path, texts())
    facts = data.describe(settings(path), Home(tmp_path / "home"), 64)
    prepared = data.prepare(settings(path), Home(tmp_path / "home"))
    assert facts["fingerprint"] == prepared.fingerprint
    assert facts["bytes_per_token"] == pytest.approx(facts["val"]["bytes"] / facts["val"]["tokens"])
    held = "<|endoftext|>".join(split(prepared)[1])
    assert facts["sample"].encode()[:60] == held.encode()[:60]


def test_importing_the_package_is_cheap() -> None:
    heavy = ("torch", "datasets", "numpy", "tokenizers", "pandas")
    code = f"import sys, ablate.data; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
