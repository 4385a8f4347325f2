"""An arm with its price: what its variant costs by the formulas, and what a trial of it trains for."""

from collections.abc import Mapping

from ablate import curriculum
from ablate.records import ArmPlan
from ablate.schema import Run
from ablate.stages import Staged
from ablate.variant import Variant
from components.spec import Cost


def priced(
    name: str,
    run: Run,
    variant: Variant,
    cost: Cost,
    trained: Staged,
    *,
    optimizer_flops: int,
    mismatch: dict[str, float],
    is_baseline: bool = False,
    resolved: Mapping[str, tuple[int, int]] | None = None,
) -> ArmPlan:
    """An `ArmPlan`; its tokens and averages over a sequence follow from the configuration.

    Args:
        cost: of one sequence. optimizer_flops: the optimizer's own in one step, charged or not.
    """
    seq_len = run.trainer.seq_len
    return ArmPlan(
        name=name,
        is_baseline=is_baseline,
        run=run,
        variant=variant,
        params=cost.params,
        active_params=cost.active_params,
        train_flops_per_token=cost.train_flops / seq_len,
        kv_bytes_per_token=cost.kv_bytes / seq_len,
        decode_flops=cost.decode_flops,
        optimizer_flops=optimizer_flops,
        step_mflop=trained.step_mflop,
        steps=trained.steps,
        early=trained.early,
        evaluations=curriculum.evaluations(run, variant, trained),
        tokens=trained.steps * run.trainer.batch_size * seq_len,
        mismatch=mismatch,
        resolved=dict(resolved or {}),
    )


def relative(own: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, float]:
    """Relative difference by currency, of those that the reference has any of."""
    return {key: own[key] / reference[key] - 1 for key in own if reference[key]}
