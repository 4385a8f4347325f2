"""Arms brought to the baseline's size: against the parameters and caches of models that are really built."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ablate import config, console, matching, planning, registration, stored
from ablate.errors import BadInputError
from ablate.home import Home
from ablate.model import build_model
from ablate.records import ArmPlan, Plan
from ablate.variant import Variant
from components.cache import Cache
from components.ffn.moe import MixtureOfExperts

ATTENTION = (
    "sweep.baseline=dense",
    "sweep.arms.dense={model.compress_ratios: dense*4}",
    "sweep.arms.hca={model.compress_ratios: hca@16*4}",
)
"""Beside the smoke sweep's own arms, `csa` and `sliding_window`."""

RESIDUALS = (
    *("~sweep.arms.csa", "~sweep.arms.sliding_window", "sweep.baseline=prenorm"),
    *("sweep.arms.prenorm={residual: prenorm}", "sweep.arms.mhc={residual: mhc}"),
)


def planned(home: Path, *overrides: str) -> Plan:
    run = config.load(["sweep=smoke", "budget.per_trial=20 GFLOP", *overrides])
    return planning.make_plan(run, Home.at(str(home)))


def measured(arm: ArmPlan, currency: str) -> int:
    """Counted on the built model: elements of its tensors, or bytes of its caches at two per element."""
    model = build_model(arm.variant)
    if currency == "kv_bytes":
        length = arm.run.trainer.seq_len
        _, caches = model.decode(torch.zeros(1, length, dtype=torch.int64))
        return sum(map(kept, caches))
    whole = sum(p.numel() for p in model.parameters())
    if currency == "params":
        return whole
    dims = arm.variant.dims
    idle = dims.n_routed_experts - dims.num_experts_per_tok
    experts = [m for m in model.modules() if isinstance(m, MixtureOfExperts)]
    return whole - sum(idle * (m.gate_up[0].numel() + m.down[0].numel()) for m in experts)


def kept(cache: Cache) -> int:
    own = sum(tensor.to(torch.bfloat16).nbytes for tensor in cache.kept.values())
    return own + sum(kept(part) for part in cache.parts.values())


@pytest.mark.parametrize(
    ("currency", "arms"),
    [
        ("params", ATTENTION),
        ("params", RESIDUALS),
        ("active_params", ATTENTION),
        ("active_params", RESIDUALS),
        ("kv_bytes", (*ATTENTION, "model.num_key_value_heads=1")),
        ("kv_bytes", RESIDUALS),
    ],
)
def test_built_models_have_what_the_baseline_has(
    currency: str, arms: tuple[str, ...], tmp_path: Path
) -> None:
    as_they_are = planned(tmp_path, *arms)
    plan = planned(tmp_path, *arms, f"budget.match={currency}")
    target = measured(plan.baseline, currency)
    assert plan.baseline.variant == as_they_are.baseline.variant
    for arm in plan.arms:
        own = measured(arm, currency)
        assert abs(own / target - 1) <= 0.01, arm.name
        assert arm.mismatch[currency] == pytest.approx(own / target - 1)
        missed = abs(measured(as_they_are.arm(arm.name), currency) / target - 1) > 0.01
        assert bool(arm.resolved) is missed, arm.name
        assert arm.steps * arm.step_mflop <= plan.trial_mflop < (arm.steps + 1) * arm.step_mflop
    assert {*plan.arms[-1].mismatch} == {"flops", "tokens", "params", "active_params", "kv_bytes"}
    if currency != "kv_bytes" or arms != RESIDUALS:  # a residual keeps nothing while decoding
        assert any(arm.resolved for arm in plan.arms)


def test_of_one_size_the_smallest_change_is_taken(tmp_path: Path) -> None:
    """Against every size between the arm's own and the one that was found."""
    plan = planned(tmp_path, *RESIDUALS, "budget.match=params", "budget.resolve=moe_intermediate_size")
    (before, after) = plan.arm("mhc").resolved["moe_intermediate_size"]
    assert after < before
    off = []
    for size in range(after, before + 1):
        run = copy.deepcopy(plan.arm("mhc").run)
        run.model.moe_intermediate_size = size
        own = Variant.from_run(run, plan.baseline.variant.dims.vocab_size).costs(64).total.params
        off.append(abs(own / plan.baseline.params - 1))
    assert off[0] <= 0.01 < min(off[1:])


@settings(deadline=None, max_examples=6)
@given(
    tolerance=st.sampled_from([0.3, 0.05, 0.01, 0.002]),
    keys=st.lists(st.sampled_from(matching.ALLOWED), min_size=1, max_size=3, unique=True),
    currency=st.sampled_from(list(matching.KEYS)),
)
def test_any_keys_meet_the_tolerance_or_the_message_says_one_that_works(
    tmp_path_factory: pytest.TempPathFactory, tolerance: float, keys: list[str], currency: str
) -> None:
    home = tmp_path_factory.getbasetemp()
    asked = (
        *ATTENTION,
        "~sweep.arms.sliding_window",
        f"budget.match={currency}",
        f"budget.resolve=[{','.join(keys)}]",
    )
    try:
        plan = planned(home, *asked, f"budget.tolerance={tolerance}")
    except BadInputError as error:
        needed = float(str(error).split("budget.tolerance=")[1].split()[0])
        assert needed > tolerance
        arm = str(error).split("'")[1]
        if needed < 1:
            kept = [text for text in asked if "sweep.arms.hca" not in text or arm == "hca"]
            alone = [] if arm == "csa" else ["~sweep.arms.csa"]
            plan = planned(home, *alone, *kept, f"budget.tolerance={needed}")
            assert set(plan.arm(arm).resolved) <= set(keys)
        return
    for arm in plan.arms:
        assert abs(arm.mismatch[currency]) <= tolerance
        assert set(arm.resolved) <= set(keys)
        for key, (before, after) in arm.resolved.items():
            assert getattr(arm.run.model, key) == after != before
            assert before == getattr(plan.baseline.variant.dims, key)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["budget.match=params", "budget.resolve=[hidden_sizes]"],
            ["hidden_sizes", "Did you mean 'hidden_size'"],
        ),
        (["budget.match=params", "budget.resolve=[]"], ["budget.resolve=[]", "moe_intermediate_size"]),
        (["budget.resolve=[head_dim]"], ["budget.resolve", "no effect", "budget.match=flops"]),
        (
            ["budget.match=kv_bytes", "budget.resolve=[q_lora_rank]"],
            ["nearest", "head_dim", "budget.tolerance="],
        ),
        (["budget.match=param"], ["budget.match=param", "params"]),
        (["budget.tolerance=1"], ["budget.tolerance=1", "below 1"]),
    ],
)
def test_what_cannot_be_matched_is_refused(tmp_path: Path, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(BadInputError) as caught:
        planned(tmp_path, *ATTENTION, *overrides)
    for word in words:
        assert word in str(caught.value)


def test_what_was_resolved_is_kept_registered_and_another_study(tmp_path: Path) -> None:
    plan = planned(tmp_path, *RESIDUALS, "budget.match=params")
    assert stored.plan_from_text(stored.plan_to_text(plan)) == plan
    changed = {arm.name: matching.told(arm.resolved) for arm in plan.arms if arm.resolved}
    assert registration.registered(plan)["resolved"] == changed != {}
    plain = planned(tmp_path, *RESIDUALS)
    assert "resolved" not in registration.registered(plain)
    same_size = ("budget.match=kv_bytes",)  # changes nothing here but what is claimed to be equal
    assert len({p.fingerprint for p in (plan, plain, planned(tmp_path, *RESIDUALS, *same_size))}) == 3


def test_the_plan_shows_what_was_resolved_and_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(tmp_path, *RESIDUALS, "budget.match=params")
    console.plan(plan)
    text = " ".join(capsys.readouterr().out.split())
    (change,) = matching.told(plan.arm("mhc").resolved)
    assert change in text
    assert "Equal between arms: parameters, and training FLOPs" in text
    assert f"{abs(plan.arm('mhc').mismatch['params']):.2%} apart" in text
