"""From a plan to the specification of one trial, and the hash by which its result is found again."""

import dataclasses
import hashlib
import json

from ablate import schema
from ablate.records import ArmPlan, Plan, TrialSpec
from ablate.specs import Phase
from components.spec import FLOP_CONVENTION

CONTRACT = "trial-2"
"""Changes whenever training itself changes, so that results of old code are not taken for those of new."""

_TRAINER = ("device", "precision", "seq_len", "batch_size", "evals")
_OPTIMIZER = ("name", "args", "grad_clip", "warmup", "decay")
_DATA = ("val_fraction", "val_tokens", "document_mask")


def spec_for(plan: Plan, arm: ArmPlan, phase: Phase, replicate: int, seed: int, lr: float) -> TrialSpec:
    """One trial of a plan, complete enough to run anywhere.

    Args:
        replicate: index of the seed within its phase; 0 in the search.
        lr: peak learning rate, which takes the place of `optimizer.lr`.
    """
    run = dataclasses.replace(
        arm.run,
        optimizer=dataclasses.replace(arm.run.optimizer, lr=lr),
        model=dataclasses.replace(arm.run.model, vocab_size=arm.variant.dims.vocab_size),
    )
    return TrialSpec(
        fingerprint=_fingerprint(plan, arm, seed, lr),
        arm=arm.name,
        phase=phase,
        replicate=replicate,
        seed=seed,
        lr=lr,
        run=schema.to_dict(run),
        steps=arm.steps,
        step_mflop=arm.step_mflop,
        early=arm.early,
        evaluations=arm.evaluations,
        data_fingerprint=plan.data_fingerprint,
    )


def _fingerprint(plan: Plan, arm: ArmPlan, seed: int, lr: float) -> str:
    """Hash of all that decides a trial's result. Names, phase, budget and place of execution do not."""
    run = arm.run
    parts = {
        "contract": CONTRACT,
        "convention": FLOP_CONVENTION,
        "variant": arm.variant.fingerprint,
        "trainer": {key: getattr(run.trainer, key) for key in _TRAINER},
        "optimizer": {key: getattr(run.optimizer, key) for key in _OPTIMIZER},
        "data": [plan.data_fingerprint, *(getattr(run.data, key) for key in _DATA)],
        "steps": arm.steps,
        "step_mflop": arm.step_mflop,
        "seed": seed,
        "lr": lr,
        **({"early": [dataclasses.asdict(stage) for stage in arm.early]} if arm.early else {}),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
