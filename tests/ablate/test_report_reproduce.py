"""The commands that a report gives, composed again."""

import dataclasses
import shlex
from pathlib import Path

import pytest
import study_views

from ablate import config
from ablate.report import files, reproduce


@pytest.mark.parametrize(
    "overrides",
    [
        ["sweep=residual", "model=tiny", "trainer.device=cpu", "budget.per_trial=2 PFLOP", "seed=7"],
        ["sweep=compress_ratios", "residual=prenorm", "sweep.question=Why, 'really'?", "~sweep.arms.hca"],
        ["sweep=probes_attention", "data.args.pairs=4", "~sweep.arms.hca_16"],
        ["sweep=residual", "data=probe/span_copy", "data.args.span=4"],
    ],
)
def test_the_commands_lead_back_to_the_same_configuration(overrides: list[str], tmp_path: Path):
    run = config.load(overrides)
    again = reproduce.reproduction(run, "study-0a1b2c3d")
    assert again.short is not None
    assert config.load(shlex.split(again.short)[2:]) == run
    files.replace(tmp_path / again.path, again.file)
    words = shlex.split(again.whole)
    assert words[:4] == ["ablate", "run", "--config-dir", reproduce.FOLDER]
    assert config.load(words[4:], [tmp_path / reproduce.FOLDER]) == run


def test_a_configuration_that_nothing_shipped_gives_is_reproduced_by_its_file_alone():
    run = dataclasses.replace(study_views.plan().run, home="/a/machine's/own")
    again = reproduce.reproduction(run, "study-0a1b2c3d")
    assert again.short is None
    assert "machine" not in again.file
