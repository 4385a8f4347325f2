"""Curricula before anything is spent: what they cost, how compute is divided among their stages, what is refused."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate import config, curriculum, optimization, planning, stages, stored, trials
from ablate.errors import BadInputError
from ablate.home import Home
from ablate.records import Plan
from ablate.schema import Trainer

THREE = "[{share: 0.25, seq_len: 32}, {share: 0.125, attention: dense}, {share: 0.625}]"
SMALL = ["sweep=smoke", "data.val_tokens=512", "budget.per_trial=20 GFLOP", "model.index_topk=4"]


def _csa(curriculum: str) -> str:
    """The arm `csa` as configured, with a curriculum."""
    return f"sweep.arms.csa={{trainer.curriculum: {curriculum}}}"


def _plan(home: Path, *overrides: str) -> Plan:
    return planning.make_plan(config.load([*SMALL, *overrides]), Home.at(str(home)))


shares = st.lists(st.integers(1, 60), min_size=1, max_size=4).map(
    lambda parts: [n / 1000 for n in parts] + [round(1 - sum(parts) / 1000, 3)]
)

large = (
    st.integers(1, 3)
    .flatmap(lambda n: st.lists(st.integers(10, 30), min_size=n, max_size=n))
    .map(lambda parts: [n / 100 for n in parts] + [round(1 - sum(parts) / 100, 2)])
)


@given(shares, st.lists(st.integers(1, 5000), min_size=5, max_size=5), st.integers(10**6, 10**9))
def test_stages_get_their_shares_and_the_last_one_spends_the_rest(
    parts: list[float], charges: list[int], allowance: int
) -> None:
    trainer = Trainer(seq_len=64, batch_size=2, curriculum=[{"share": share} for share in parts])
    charges = charges[: len(parts)]
    solved = curriculum.by_compute(trainer, charges, allowance)
    assert 0 <= allowance - solved.mflop < charges[-1]
    assert solved.mflop == sum(n * mflop for n, mflop in zip(solved.counts, charges, strict=True))
    spent = 0
    for i, (count, mflop) in enumerate(zip(solved.counts, charges, strict=True)):
        spent += count * mflop
        planned = sum(stages.exact(share) for share in parts[: i + 1]) * allowance
        assert 0 <= planned - spent < mflop + 1


@given(large, st.lists(st.integers(100, 1000), min_size=5, max_size=5), st.integers(10**6, 10**8))
def test_equal_tokens_are_equal_and_paid_for(parts: list[float], charges: list[int], allowance: int) -> None:
    curricula = {"staged": [{"share": share} for share in parts], "plain": []}
    trainers = {name: Trainer(seq_len=64, batch_size=2, curriculum=c) for name, c in curricula.items()}
    priced = {"staged": charges[: len(parts)], "plain": charges[-1:]}
    plain = {name: allowance // mflops[-1] for name, mflops in priced.items()}
    solved = curriculum.solve(trainers, priced, allowance, plain, "tokens")
    assert solved["staged"].steps == solved["plain"].steps
    assert max(s.mflop for s in solved.values()) <= allowance
    assert allowance - max(s.mflop for s in solved.values()) <= 5 * max(charges)
    whole = solved["staged"].mflop
    for count, mflop, share in zip(solved["staged"].counts, priced["staged"], parts, strict=True):
        assert abs(count * mflop - share * whole) <= 3 * max(charges)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 99)), max_size=4), st.integers(1, 99))
def test_a_charge_is_the_sum_over_its_steps(early: list[tuple[int, int]], last: int) -> None:
    made = tuple(
        stages.Stage(seq_len=8, batch_size=1, attention="sparse", steps=steps, step_mflop=mflop)
        for steps, mflop in early
    )
    steps = [mflop for count, mflop in early for _ in range(count)] + [last] * 5
    training = stages.Staged(steps=len(steps), step_mflop=last, early=made)
    for n in range(len(steps) + 1):
        assert training.charge(n) == sum(steps[:n])
    assert training.mflop == sum(steps)
    for n, mflop in enumerate(steps):
        stage = training.stage(n)
        assert (stage.step_mflop if stage else last) == mflop


def test_a_stage_costs_what_a_plan_of_nothing_else_costs(tmp_path: Path) -> None:
    arms = f"sweep.arms={{sliding_window: {{model.compress_ratios: swa*4}}, csa: {{trainer.curriculum: {THREE}}}}}"
    plan = _plan(tmp_path, arms)
    short = _plan(tmp_path, "trainer.seq_len=32", "trainer.batch_size=4", "sweep.arms.csa={}").arm("csa")
    dense = _plan(tmp_path, "indexer=dense", "sweep.arms.csa={}").arm("csa")
    whole = _plan(tmp_path, "sweep.arms.csa={}").arm("csa")
    csa = plan.arm("csa")
    assert [stage.step_mflop for stage in csa.early] == [short.step_mflop, dense.step_mflop]
    assert csa.step_mflop == whole.step_mflop
    assert [stage.seq_len * stage.batch_size for stage in csa.early] == [128, 128]
    assert csa.mflop <= plan.trial_mflop < csa.mflop + csa.step_mflop
    assert csa.tokens == csa.steps * 128
    assert not plan.arm("sliding_window").early
    assert plan.arm("sliding_window").mflop <= plan.trial_mflop


def test_a_plan_and_its_trials_survive_being_stored(tmp_path: Path) -> None:
    plan = _plan(tmp_path, _csa(THREE))
    assert stored.plan_from_text(stored.plan_to_text(plan)) == plan
    spec = trials.spec_for(plan, plan.arm("csa"), "search", 0, 1, 1e-3)
    assert spec.early == plan.arm("csa").early
    assert spec.allowance_mflop == plan.arm("csa").mflop
    assert stored.spec_from_text(stored.spec_to_text(spec)) == spec
    plain = trials.spec_for(plan, plan.baseline, "search", 0, 1, 1e-3)
    assert stored.spec_from_text(stored.spec_to_text(plain)) == plain


def test_curricula_tell_arms_studies_and_trials_apart(tmp_path: Path) -> None:
    same = "sweep.arms={sliding_window: {model.index_topk: 4}, csa: {}}"
    with pytest.raises(BadInputError, match="is the same model as arm"):
        _plan(tmp_path, same)
    plan = _plan(tmp_path, same, _csa(THREE))
    other = _plan(tmp_path, same, _csa(THREE.replace("0.125", "0.1250")))
    third = _plan(tmp_path, same, _csa("[{share: 0.5, seq_len: 32}, {share: 0.5}]"))
    assert plan.fingerprint == other.fingerprint != third.fingerprint
    marks = {
        trials.spec_for(p, p.arm(name), "search", 0, 1, 1e-3).fingerprint
        for p in (plan, other, third)
        for name in ("sliding_window", "csa")
    }
    assert len(marks) == 3


def test_optimizers_are_charged_for_what_a_stage_moves(tmp_path: Path) -> None:
    stretches = "[{share: 0.3, attention: dense}, {share: 0.3, attention: warmup}, {share: 0.4}]"
    run = dataclasses.replace(
        config.load([*SMALL, "optimizer=muon", "model.compress_ratios=csa@4*4"]),
        sweep=config.load(SMALL).sweep,
    )
    applied = dataclasses.replace(
        run, trainer=config.load([*SMALL, f"trainer.curriculum={stretches}"]).trainer
    )
    from ablate.variant import Variant

    variant = Variant.from_run(applied, 300)
    update = optimization.flops_per_step(applied.optimizer, variant)
    own = [
        with_ - without
        for with_, without in zip(
            curriculum.flops(applied, variant, update), curriculum.flops(applied, variant, 0), strict=True
        )
    ]
    assert own[0] + own[1] == own[2]
    assert min(own) > 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[{share: 0.5, seq_len: 32}, {share: 0.4}]", r"shares 0.5 \+ 0.4 sum to 0.9. Allowed: a sum of 1"),
        ("[{share: 0.5, seqlen: 32}, {share: 0.5}]", r"curriculum\[0\].seqlen=32.*seq_len"),
        ("[{seq_len: 32}, {share: 1}]", r"curriculum\[0\] has no share"),
        ("[{share: 0.0, seq_len: 32}, {share: 1}]", r"\[0\].share=0.0 is not allowed. Allowed: above 0"),
        ("[{share: x}, {share: 1}]", r"\[0\].share=x has the wrong type. Allowed: a number"),
        ("[{share: 0.5, attention: full}, {share: 0.5}]", r"attention=full .*Allowed: sparse, dense, warmup"),
        (
            "[{share: 0.5, seq_len: 24}, {share: 0.5}]",
            r"seq_len=24 does not divide trainer.seq_len=64.*2, 4, 8",
        ),
        ("[{share: 0.5}, {share: 0.5, seq_len: 32}]", r"\[1\].seq_len=32: the last stretch trains the model"),
        ("[{share: 1, attention: dense}]", r"\[0\].attention=dense: the last stretch trains the model"),
        ("short", "has the wrong type. Allowed: a list"),
    ],
)
def test_curricula_that_cannot_be_are_refused_as_they_are_read(value: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        config.load([*SMALL, f"trainer.curriculum={value}"])


def _half(**stretch: object) -> str:
    inside = ", ".join(f"{key}: {value}" for key, value in stretch.items())
    return f"[{{share: 0.5, {inside}}}, {{share: 0.5}}]"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [_csa(_half(seq_len=8))],
            r"arm 'csa', trainer.curriculum\[0\].*blocks of 16 tokens, but trainer.curriculum\[0\].seq_len=8",
        ),
        (
            [f"trainer.curriculum={_half(attention='dense')}", "sweep.arms.csa={}"],
            "arm 'sliding_window'.*no layer of swa",
        ),
        (
            ["model.index_topk=16", _csa(_half(attention="dense"))],
            "nothing to do: no layer of swa,csa@4,.*below seq_len / ratio",
        ),
        (["indexer=random", _csa(_half(attention="warmup"))], "warmup trains nothing: indexer=random"),
        (["indexer.args.train=dense", _csa(_half(attention="dense"))], "nothing to do"),
        (
            [_csa("[{share: 0.01, seq_len: 32}, {share: 0.99}]")],
            r"arm 'csa': trainer.curriculum\[0\].share=0.01 of .* is less than one step of that stage",
        ),
        (
            ["sweep.arms.csa={trainer.seq_len: 32}"],
            "trainer.seq_len=32 cannot differ between arms.*trainer.curriculum",
        ),
    ],
)
def test_curricula_that_a_model_cannot_follow_are_refused_before_compute(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match=message):
        _plan(tmp_path, *overrides)
