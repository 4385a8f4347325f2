"""Plans: every shipped sweep is priced, budgets are divided exactly, and what cannot work is refused with numbers."""

import dataclasses
import math
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablate import config, division, planning, stored, trials, units
from ablate.errors import BadInputError
from ablate.home import Home
from ablate.records import Plan

SWEEPS = sorted(
    path.stem for path in (Path(str(config.__file__)).parent.parent / "sweeps/sweep").glob("*.yaml")
)


def _plan(home: Path, *overrides: str) -> Plan:
    return planning.make_plan(config.load(["sweep=smoke", *overrides]), Home.at(str(home)))


@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_shipped_sweep_plans_and_touches_nothing(sweep: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    plan = planning.make_plan(config.load([f"sweep={sweep}"]), Home.at(str(home)))
    assert not home.exists()
    assert plan.study.startswith(f"{sweep}-")
    assert [arm.name for arm in plan.arms if arm.is_baseline] == [plan.run.sweep.baseline]
    assert sum(plan.caps.values()) <= plan.total_mflop
    assert plan.estimated_seconds is not None
    assert plan.detectable_effect > 0
    dearest = max(plan.arms, key=lambda arm: arm.step_mflop)
    for arm in plan.arms:
        assert arm.mflop <= plan.trial_mflop
        assert plan.trial_mflop < arm.mflop + arm.step_mflop or (
            plan.run.budget.match == "tokens" and arm.steps == dearest.steps and arm is not dearest
        )
        assert arm.tokens == arm.steps * plan.run.trainer.seq_len * plan.run.trainer.batch_size
    if sweep != "smoke":
        assert min(arm.steps for arm in plan.arms) >= planning.SHORT_RUN


def test_planning_is_quick(tmp_path: Path) -> None:
    run = config.load(["sweep=compress_ratios"])
    start = time.process_time()
    planning.make_plan(run, Home.at(str(tmp_path)))
    assert time.process_time() - start < 3


def test_grid_is_centred_and_seeds_of_search_and_confirm_are_disjoint(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "optimizer.lr=0.01", "seed=7")
    assert plan.lr_grid == pytest.approx((0.0025, 0.005, 0.01, 0.02, 0.04))
    assert plan.search_seed not in plan.confirm_seeds
    other = _plan(tmp_path, "seed=8")
    assert not {plan.search_seed, *plan.confirm_seeds} & {other.search_seed, *other.confirm_seeds}


def test_fingerprint_follows_what_decides_numbers_and_nothing_else(tmp_path: Path) -> None:
    reference = _plan(tmp_path).fingerprint
    for same in (
        "launcher.workers=3",
        "tracking=off",
        "home=elsewhere",
        "sweep.question=Other?",
        "trainer.checkpoint_seconds=5",
    ):
        assert _plan(tmp_path, same).fingerprint == reference, same
    for other in (
        "seed=1",
        "optimizer.lr=0.01",
        "model.sliding_window=8",
        "budget.per_trial=3e9",
        "data.vocab_size=1024",
    ):
        assert _plan(tmp_path, other).fingerprint != reference, other


def test_matching_tokens_gives_equal_steps_within_the_allowance(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "budget.match=tokens")
    assert len({arm.steps for arm in plan.arms}) == 1
    assert all(arm.steps * arm.step_mflop <= plan.trial_mflop for arm in plan.arms)
    cheap = next(arm for arm in plan.arms if not arm.is_baseline)
    assert "flops" in cheap.mismatch
    assert "tokens" not in cheap.mismatch


@settings(deadline=None, max_examples=20)
@given(total=st.integers(10**11, 10**15), share=st.floats(0, 0.9))
def test_a_total_is_divided_without_overspending(
    tmp_path_factory: pytest.TempPathFactory, total: int, share: float
) -> None:
    run = config.load(
        ["sweep=smoke", "budget.per_trial=null", f"budget.total={total}", f"budget.contingency={share}"]
    )
    try:
        allowance, bound, caps = division.divide(run, dearest_step=100)
    except BadInputError:
        return
    assert bound == total // units.MFLOP
    assert sum(caps.values()) <= bound
    assert caps["search"] == 2 * 5 * allowance
    assert caps["confirm"] == 2 * 2 * allowance


@pytest.mark.parametrize("key", ["budget.per_trial", "budget.total"])
def test_the_smallest_budget_that_the_message_names_works(tmp_path: Path, key: str) -> None:
    start = [f"{key}=2e6", *(["budget.per_trial=null"] if key == "budget.total" else [])]
    with pytest.raises(BadInputError, match=rf"{key}=.*too small.*Smallest that works: (\d+)") as caught:
        _plan(tmp_path, *start)
    smallest = str(caught.value).split("Smallest that works: ")[1].split(" ")[0]
    plan = _plan(tmp_path, f"{key}={smallest}", *start[1:])
    assert min(arm.steps for arm in plan.arms) >= 1


def test_a_total_that_does_not_pay_for_the_planned_trials(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"budget\.total=5e9 .*14 trials") as caught:
        _plan(tmp_path, "budget.per_trial=2e9", "budget.total=5e9")
    smallest = str(caught.value).split("budget.total=")[2].split(" ")[0]
    assert _plan(tmp_path, "budget.per_trial=2e9", f"budget.total={smallest}").trial_mflop == 2000


def test_surplus_of_a_total_is_not_spent(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "budget.per_trial=2e9", "budget.total=1e12")
    assert plan.total_mflop == 10**6
    assert plan.caps["search"] + plan.caps["confirm"] == 14 * 2000


def test_evaluations_are_paid_beside_training_and_shorten_none_of_it(tmp_path: Path) -> None:
    few, many = (_plan(tmp_path, f"trainer.evals={evals}") for evals in (1, 3))
    assert [arm.steps for arm in few.arms] == [arm.steps for arm in many.arms]
    for plan in (few, many):
        per_arm = (plan.caps["search"] + plan.caps["confirm"]) // plan.trial_mflop // len(plan.arms)
        assert plan.caps["evaluation"] == per_arm * sum(arm.evaluation_mflop for arm in plan.arms)
        assert plan.total_mflop == sum(plan.caps.values())
        for arm in plan.arms:
            cost = arm.variant.costs(plan.run.trainer.seq_len).total
            blocks = plan.run.data.val_tokens // plan.run.trainer.seq_len
            assert {mflop for _, mflop in arm.evaluations} == {
                math.ceil(cost.forward_flops * blocks / units.MFLOP)
            }
            assert len(arm.evaluations) == plan.run.trainer.evals
            assert arm.evaluations[-1][0] == arm.steps
    assert few.fingerprint != many.fingerprint
    total = f"budget.total={few.total_mflop * units.MFLOP}"
    assert _plan(tmp_path, "budget.per_trial=null", total, "trainer.evals=1").trial_mflop == few.trial_mflop


def test_short_trials_are_warned_about(tmp_path: Path) -> None:
    assert any("no verdict" in warning for warning in _plan(tmp_path).warnings)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sweep.arms.csa={model.compress_ratios: csa@4*3}"], ["arm 'csa'", "3", "4"]),
        (["sweep.arms.csa={model.compress_ratios: csa@512*4}"], ["arm 'csa'", "512", "64"]),
        (["sweep.arms.csa={model.compress_ratios: cas@4*4}"], ["arm 'csa'", "cas", "csa"]),
        (["sweep.arms.twin={model.compress_ratios: csa@4*4}"], ["twin", "same model", "csa"]),
        (["model.vocab_size=100"], ["model.vocab_size=100", "2048"]),
        (["trainer.device=cuda:99"], ["trainer.device=cuda:99", "cpu"]),
        (["budget.per_trial=null"], ["budget.per_trial", "budget.total"]),
        (["data=text", "data.files=[/no/such/file.txt]"], ["/no/such/file.txt"]),
        (["data.tokenizer=/no/such/folder"], ["data.tokenizer", "/no/such/folder"]),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(BadInputError) as caught:
        _plan(tmp_path, *overrides)
    for word in words:
        assert word in str(caught.value)


def test_arms_keep_their_own_configuration(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "sweep.arms.plain={residual: prenorm}")
    assert plan.arm("plain").run.residual.name == "prenorm"
    assert plan.arm("csa").run.model.compress_ratios == "csa@4*4"
    assert plan.baseline.mismatch == dict.fromkeys(plan.baseline.mismatch, 0.0)
    assert dataclasses.asdict(plan.arm("plain").run.data) == dataclasses.asdict(plan.run.data)


def _newton_schulz(rows: int, columns: int, steps: int) -> int:
    """Three products per step: X X^T, its square, and both times X."""
    n, m = min(rows, columns), max(rows, columns)
    return steps * (2 * n * n * m + 2 * n * n * n + 2 * n * n * m)


def test_arms_that_differ_in_their_optimizer_pay_for_its_products(tmp_path: Path) -> None:
    short = "{optimizer: {name: muon, args: {newton_schulz: quintic}}}"
    plan = _plan(
        tmp_path,
        *("residual=prenorm", "ffn=swiglu", "output_projection=dense", "model.compress_ratios=dense*4"),
        *("~sweep.arms.csa", "~sweep.arms.sliding_window", "sweep.arms.plain={}", "sweep.baseline=plain"),
        *("sweep.arms.muon={optimizer: muon}", f"sweep.arms.short={short}", "budget.per_trial=1e12"),
    )
    dims, tokens = plan.baseline.variant.dims, plan.run.trainer.seq_len * plan.run.trainer.batch_size
    heads, keys = dims.num_attention_heads * dims.head_dim, dims.num_key_value_heads * dims.head_dim
    d, f = dims.hidden_size, dims.moe_intermediate_size * (dims.num_experts_per_tok + dims.n_shared_experts)
    matrices = [(heads, d), (keys, d), (keys, d), (d, heads), (f, d), (f, d), (d, f)] * 4
    training = plan.baseline.train_flops_per_token * tokens
    assert plan.baseline.optimizer_flops == 0
    assert plan.baseline.step_mflop == math.ceil(training / 1e6)
    for name, steps in (("muon", 10), ("short", 5)):
        arm, own = plan.arm(name), sum(_newton_schulz(*shape, steps) for shape in matrices)
        assert arm.optimizer_flops == own
        assert arm.step_mflop == math.ceil((training + own) / 1e6)
        assert arm.steps == plan.trial_mflop // arm.step_mflop < plan.baseline.steps
        assert arm.run.optimizer.name == "muon"


def test_arms_that_share_their_optimizer_do_not_pay_for_it(tmp_path: Path) -> None:
    shared, plain = _plan(tmp_path, "optimizer=muon"), _plan(tmp_path)
    assert [arm.step_mflop for arm in shared.arms] == [arm.step_mflop for arm in plain.arms]
    assert all(arm.optimizer_flops > 0 for arm in shared.arms)
    assert shared.fingerprint != plain.fingerprint


def test_trials_of_different_optimizers_are_different_trials(tmp_path: Path) -> None:
    def fingerprint(*overrides: str) -> str:
        plan = _plan(tmp_path, *overrides)
        return trials.spec_for(plan, plan.baseline, "search", 0, 0, 1e-3).fingerprint

    changes = (["optimizer=muon"], ["optimizer=lion"], ["optimizer.args.beta1=0.8"], ["optimizer.warmup=0.1"])
    found = {fingerprint(), *(fingerprint(*change) for change in changes)}
    assert len(found) == 1 + len(changes)
    assert fingerprint("optimizer.lr=0.1") == fingerprint()  # the trial has its own


def test_twins_are_told_by_their_optimizer(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "sweep.arms.b={optimizer: muon}")
    assert stored.plan_from_text(stored.plan_to_text(plan)) == plan
    with pytest.raises(BadInputError, match=r"sweep\.arms\.c"):
        _plan(tmp_path, "sweep.arms.b={optimizer: muon}", "sweep.arms.c={optimizer.name: muon}")
