"""What an evaluation runs is what it is charged for: the model of its stage once over the held-out blocks."""

import random
from pathlib import Path

import pytest
import variants
from torch.utils.flop_counter import FlopCounterMode

from ablate import curriculum, data, schema, staging
from ablate.evaluation import evaluate
from ablate.home import Home
from ablate.model import LanguageModel, initialise
from ablate.stages import ATTENTION, DENSE, WARMUP
from ablate.variant import Variant
from components import native

BLOCKS, LENGTH = 6, 32
AS = {
    DENSE: {"indexer": schema.Slot("dense")},
    WARMUP: {"indexer": schema.Slot("lightning", {"train": "dense"})},
}
"""Slots of a model that always is what a stage makes of it for a while."""


def _run(**changes: object) -> schema.Run:
    run = variants.make_run(vocab_size=260, num_nextn_predict_layers=1, **changes)
    trainer = schema.Trainer(device="cpu", seq_len=LENGTH, batch_size=2)
    return schema.Run(
        **{**vars(run), "trainer": trainer, "data": schema.Data(val_tokens=BLOCKS * LENGTH + LENGTH - 1)}
    )


@pytest.mark.parametrize("attention", ATTENTION)
def test_the_charge_is_that_of_the_model_of_the_stage(attention: str) -> None:
    run = _run()
    as_in_stage = Variant.from_run(_run(**AS.get(attention, {}))).costs(LENGTH).total
    found = curriculum.evaluation_flops(run, Variant.from_run(run), attention)
    assert found == BLOCKS * as_in_stage.forward_flops
    whole = curriculum.evaluation_flops(run, Variant.from_run(run), "sparse")
    assert (found != whole) == (attention != "sparse")


@pytest.mark.parametrize("attention", ATTENTION)
def test_an_evaluation_runs_the_model_once_over_its_blocks(attention: str, tmp_path: Path) -> None:
    """By PyTorch's counter, masked work included, with prediction layers; no choice is left to be measured."""
    rng = random.Random(0)
    (tmp_path / "text.txt").write_text("\n".join("".join(rng.choices("abcd ", k=90)) for _ in range(60)))
    settings = schema.Data(
        source="text", files=[str(tmp_path / "text.txt")], tokenizer="bytes", val_fraction=0.2
    )
    held = data.prepare(settings, Home(tmp_path)).validation(LENGTH, BLOCKS * LENGTH)
    variant = Variant.from_run(_run(index_topk=LENGTH))
    model = LanguageModel(variant)
    initialise(model, 0)
    staging.enter(model, attention)
    with native.switched_off(), FlopCounterMode(display=False) as counter:
        evaluate(model, held)
    cost = Variant.from_run(_run(index_topk=LENGTH, **AS.get(attention, {}))).costs(LENGTH).total
    assert counter.get_total_flops() == BLOCKS * cost.kernel_flops
