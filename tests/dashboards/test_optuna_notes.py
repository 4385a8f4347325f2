"""Notes and charts in a real Optuna storage."""

import optuna
import pytest
import study_views
from optuna_dashboard import get_note

from ablate.errors import AblateError
from ablate.home import Home
from dashboards import optuna_notes


def test_notes_say_question_verdicts_and_trials(tmp_path):
    home = Home(tmp_path)
    view = study_views.view(name="noted-1", question="Does <b>it</b> help?")
    study_views.search(home, view)
    assert optuna_notes.annotate(home, view) > 0
    study = optuna.load_study(study_name=view.name, storage=f"sqlite:///{home.optuna}")
    note = get_note(study)
    assert "Does &lt;b&gt;it&lt;/b&gt; help?" in note
    assert all(f"{verdict.delta:+.4f}" in note for verdict in view.verdicts)
    attributes = study._storage.get_study_system_attrs(study._study_id)
    assert any("ablate-forest" in key for key in attributes)
    trial = study.get_trials()[3]
    words = attributes[f"dashboard:{trial._trial_id}:note_str:0"]
    assert trial.params["arm"] in words
    assert f"{trial.params['lr']:.4g}" in words
    assert optuna_notes.annotate(home, view) == 0, "a second time changes nothing"


def test_a_running_study_is_left_to_its_scheduler(tmp_path):
    with pytest.raises(AblateError, match="is running"):
        optuna_notes.annotate(Home(tmp_path), study_views.view("running", 5))


def test_no_search_no_notes(tmp_path):
    assert optuna_notes.annotate(Home(tmp_path), study_views.view()) == 0
    assert list(tmp_path.iterdir()) == []
