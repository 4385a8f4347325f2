"""Training through the stages of a curriculum: what each charges, reads, moves and computes; resumed anywhere."""

import dataclasses
from pathlib import Path
from typing import Any

import corpora
import pytest
import torch
import variants
from test_training import Purse, _weights
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ablate import checkpoint, curriculum, optimization, schema, staging, training
from ablate.data import Corpus
from ablate.model import LanguageModel, initialise
from ablate.records import TrialSpec
from ablate.schema import Stretch
from ablate.stages import ATTENTION, Stage, Staged
from ablate.variant import Variant
from components import native
from components.attention.pairs import entry_pairs

LENGTH, ROWS = 32, 2
COUNTS = (2, 3, 2, 4)
STEPS = sum(COUNTS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpora.corpus(tmp_path_factory.mktemp("text"), val_tokens=256)


def _early(*stages: tuple[int, str, int]) -> tuple[Stage, ...]:
    """Early stages from length, attention and steps, each at a price of its own."""
    return tuple(
        Stage(
            seq_len=length,
            batch_size=ROWS * LENGTH // length,
            attention=attention,
            steps=steps,
            step_mflop=11 + 7 * i,
        )
        for i, (length, attention, steps) in enumerate(stages)
    )


ALL = _early((16, "sparse", COUNTS[0]), (16, "dense", COUNTS[1]), (LENGTH, "warmup", COUNTS[2]))


def _spec(
    corpus: Corpus, early: tuple[Stage, ...], steps: int = STEPS, optimizer: str = "adamw", **changes: Any
) -> TrialSpec:
    run = variants.make_run(vocab_size=corpus.vocab_size, optimizer=schema.Optimizer(optimizer), **changes)
    run = dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, val_tokens=256),
        trainer=schema.Trainer(
            device="cpu", seq_len=LENGTH, batch_size=ROWS, evals=3, checkpoint_seconds=1e9, keep_weights="all"
        ),
    )
    trained = Staged(steps=steps, step_mflop=29, early=early)
    return TrialSpec(
        fingerprint=f"{early} {steps} {optimizer}",
        arm="v4",
        phase="confirm",
        replicate=0,
        seed=3,
        lr=run.optimizer.lr,
        run=schema.to_dict(run),
        steps=steps,
        step_mflop=29,
        data_fingerprint=corpus.fingerprint,
        early=early,
        evaluations=curriculum.evaluations(run, Variant.from_run(run), trained),
    )


def _ids(length: int, rows: int = 2) -> Tensor:
    return torch.randint(31, (rows, length), generator=torch.Generator().manual_seed(0))


def _model(variant: Variant, attention: str = "sparse") -> LanguageModel:
    model = LanguageModel(variant)
    initialise(model, 5)
    staging.enter(model, attention)
    return model


def test_a_trial_spends_its_allowance_by_stages_and_the_rate_follows_compute(
    corpus: Corpus, tmp_path: Path
) -> None:
    spec, purse = _spec(corpus, ALL), Purse()
    result = training.train(spec, corpus, tmp_path, purse)
    steps = [stage.step_mflop for stage in ALL for _ in range(stage.steps)] + [29] * COUNTS[-1]
    total = sum(steps)
    assert result.outcome == "complete"
    assert purse.paid == list(range(STEPS))
    assert result.useful_mflop == spec.allowance_mflop == total
    assert result.tokens == STEPS * ROWS * LENGTH
    assert len(result.curve) == 3
    for i, point in enumerate(result.curve, start=1):
        assert point.mflop == sum(steps[: point.step])
        assert point.mflop - steps[point.step - 1] < total * i / 3 <= point.mflop
        middle = (point.mflop - steps[point.step - 1] / 2) / total
        share = optimization.rate(middle, schema.Optimizer("adamw"))
        assert point.lr == pytest.approx(spec.lr * share, rel=1e-12)


def test_all_curricula_read_the_same_tokens_in_the_same_order(corpus: Corpus, tmp_path: Path) -> None:
    ways = {"plain": (), "all": ALL, "short": _early((4, "sparse", 7))}
    hashes = {
        name: training.train(_spec(corpus, early, 8), corpus, tmp_path / name, Purse()).tokens_hash
        for name, early in ways.items()
    }
    assert len(set(hashes.values())) == 1
    batch = corpus.batch(3, 1, ROWS, LENGTH)
    cut = batch.cut(8)
    assert cut.inputs.shape == cut.labels.shape == cut.documents.shape == (ROWS * LENGTH // 8, 8)
    for row in range(ROWS):
        pieces = slice(row * LENGTH // 8, (row + 1) * LENGTH // 8)
        assert torch.equal(cut.inputs[pieces].flatten(), batch.inputs[row])
        assert torch.equal(cut.labels[pieces].flatten(), batch.labels[row])
    for inputs, documents in zip(cut.inputs, cut.documents, strict=True):
        ends = [0, *(inputs[:-1] == corpus.facts["end_id"]).cumsum(0).tolist()]
        assert documents.tolist() == ends


def test_only_what_a_stage_trains_moves(corpus: Corpus, tmp_path: Path) -> None:
    spec, states = _spec(corpus, ALL), []
    for stop in (1, COUNTS[0], sum(COUNTS[:2]), sum(COUNTS[:3])):
        training.train(spec, corpus, tmp_path, Purse(stop_before=stop))
        saved, _ = checkpoint.load(tmp_path)
        assert saved is not None
        states.append({n: t for n, t in saved.tensors.items() if n.startswith(("model/", "optimizer/"))})
    for stage, moves in enumerate(({True, False}, {False}, {True})):
        before, after = states[stage], states[stage + 1]
        changed = {n for n in before if n.startswith("model/") and not torch.equal(before[n], after[n])}
        assert {".indexer." in name for name in changed} == moves, stage
    indexers = {name for name in states[0] if name.startswith("model/") and ".indexer." in name}
    assert indexers == changed


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resume_is_bit_identical_at_every_step(optimizer: str, corpus: Corpus, tmp_path: Path) -> None:
    spec = _spec(corpus, ALL, optimizer=optimizer)
    whole = training.train(spec, corpus, tmp_path / "whole", Purse())
    for stop in range(1, STEPS):  # each part is one step, from the checkpoint of the one before
        part = training.train(spec, corpus, tmp_path / "parts", Purse(stop_before=stop))
        assert part.useful_mflop == spec.charge(stop)
    done = training.train(spec, corpus, tmp_path / "parts", Purse())
    assert done.val_loss == whole.val_loss
    assert done.tokens_hash == whole.tokens_hash
    assert [p.val_loss for p in done.curve] == [p.val_loss for p in whole.curve]
    assert [p.train_loss for p in done.curve] == [p.train_loss for p in whole.curve]
    assert _weights(tmp_path / "parts") == _weights(tmp_path / "whole")


def test_a_dense_stage_is_attention_to_every_block() -> None:
    """Against the same weights under three other entries: an indexer that chooses all, a top-k of all, and HCA."""
    schedule = "swa,csa@4:no_overlap*3,swa"
    plain = _model(variants.make_variant(compress_ratios=schedule), "dense").double()
    tokens, labels = _ids(LENGTH), _ids(LENGTH).roll(-1)
    out = plain(tokens, labels)
    out.loss.backward()
    others = {
        "chooses all": {"compress_ratios": schedule, "indexer": schema.Slot("dense")},
        "top-k of all": {
            "compress_ratios": schedule,
            "index_topk": 8,
            "indexer": schema.Slot("lightning", {"train": "none"}),
        },
        "hca": {"compress_ratios": "swa,hca@4*3,swa"},
    }
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    for name, changes in others.items():
        model = _model(variants.make_variant(**changes)).double()
        found = model(tokens, labels)
        torch.testing.assert_close(found.logits, out.logits, rtol=1e-12, atol=1e-12)
        found.loss.backward()
        for key, parameter in model.named_parameters():
            if ".indexer." not in key:
                torch.testing.assert_close(
                    parameter.grad, gradients[key], rtol=1e-9, atol=1e-12, msg=f"{name} {key}"
                )
    assert all(gradients[name] is None for name in gradients if ".indexer." in name)
    sparse = _model(variants.make_variant(compress_ratios=schedule)).double()
    assert not torch.allclose(sparse(tokens).logits, out.logits)
    staging.enter(plain, "sparse")
    assert torch.equal(plain(tokens).logits, sparse(tokens).logits)


def test_a_warm_up_attends_densely_and_teaches_the_indexer_alone() -> None:
    variant = variants.make_variant()
    warm, dense = _model(variant, "warmup"), _model(variant, "dense")
    tokens, labels = _ids(LENGTH), _ids(LENGTH).roll(-1)
    out = warm(tokens, labels)
    torch.testing.assert_close(out.logits, dense(tokens, labels).logits)
    sum(value for key, value in out.aux.items() if key.startswith("loss/")).backward()
    reached = {name for name, p in warm.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached == {name for name, _ in warm.named_parameters() if ".indexer." in name}
    teacher = _model(variants.make_variant(indexer=schema.Slot("lightning", {"train": "dense"})))
    found = teacher(tokens, labels)
    for key, value in out.aux.items():
        if "indexer" in key:
            assert torch.equal(value, found.aux[key])
    staging.enter(warm, "sparse")
    assert all(p.requires_grad for p in warm.parameters())


@pytest.mark.parametrize("attention", ATTENTION)
def test_no_logit_depends_on_later_tokens(attention: str) -> None:
    model = _model(variants.make_variant(), attention).double().eval()
    tokens = _ids(27, rows=1)
    with torch.no_grad():
        before = model(tokens).logits
        for t in (3, 4, 15, 26):
            changed = tokens.clone()
            changed[0, t] = (changed[0, t] + 1) % 31
            after = model(changed).logits
            torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=1e-13)
            assert not torch.allclose(after[:, t:], before[:, t:])


@pytest.mark.parametrize("length", [16, LENGTH])
@pytest.mark.parametrize("attention", ATTENTION)
def test_what_a_stage_runs_is_what_pytorch_counts(attention: str, length: int) -> None:
    """Kernels run masked work that the charge leaves out, so both are derived here, one from the other."""
    variant = variants.make_variant()
    indexer = {
        "sparse": ("lightning", {}),
        "dense": ("dense", {}),
        "warmup": ("lightning", {"train": "dense"}),
    }
    name, options = indexer[attention]
    cost = variants.make_variant(indexer=schema.Slot(name, options)).costs(length).total
    model, rows = _model(variant, attention), ROWS * LENGTH // length
    tokens, labels = _ids(length, rows), _ids(length, rows).roll(-1)
    with native.switched_off(), FlopCounterMode(display=False) as forward, torch.no_grad():
        model(tokens, labels)
    assert forward.get_total_flops() == cost.kernel_flops * rows
    with native.switched_off(), FlopCounterMode(display=False) as both:
        out = model(tokens, labels)
        losses = [value for key, value in out.aux.items() if key.startswith("loss/")]
        (sum(losses) + out.loss).backward()
    dims, entries, layers = variant.dims, length // 4, 2
    width = dims.index_n_heads * dims.index_head_dim
    own = width * dims.q_lora_rank + dims.index_n_heads * dims.hidden_size
    pooling = 4 * dims.hidden_size * dims.index_head_dim
    kernels = {
        "projections": 2 * (pooling * entries * 4 + own * length),
        "scores": 2 * width * length * entries,
    }
    learning = layers * (kernels["projections"] + 2 * kernels["scores"])
    main = variants.make_variant(indexer=schema.Slot("dense")).costs(length).total.kernel_flops
    backward = {"sparse": 2 * main + learning, "dense": 2 * main, "warmup": learning}[attention]
    assert both.get_total_flops() == (cost.kernel_flops + backward) * rows

    exact = {"projections": 2 * (pooling + own) * length, "scores": 2 * width * entry_pairs(length, 4)}
    trained = layers * (2 * exact["projections"] + 3 * exact["scores"])
    everything = variants.make_variant(indexer=schema.Slot("dense")).costs(length).total
    run = dataclasses.replace(variants.make_run(), trainer=schema.Trainer(seq_len=LENGTH, batch_size=ROWS))
    charged = curriculum.step_flops(run, variant, Stretch(share=0.5, seq_len=length, attention=attention))
    expected = {
        "sparse": variants.make_variant().costs(length).total.train_flops,
        "dense": 3 * everything.forward_flops,
        "warmup": everything.forward_flops + trained,
    }
    assert charged == expected[attention] * rows
