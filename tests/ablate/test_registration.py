"""Pre-registration: its hash follows what is fixed and nothing else, and every deviation is named."""

import dataclasses
import json

import judged_studies
import report_pages
import small_studies
import study_views
from sqlalchemy import update

from ablate import db, questions, registration, report, stored, study
from ablate.home import Home
from ablate.records import Plan


def changed(plan: Plan, **confirm: object) -> Plan:
    settings = dataclasses.replace(plan.run.sweep.confirm, **confirm)  # type: ignore[arg-type]
    sweep = dataclasses.replace(plan.run.sweep, confirm=settings)
    return dataclasses.replace(plan, run=dataclasses.replace(plan.run, sweep=sweep))


def test_the_hash_follows_what_is_fixed_and_nothing_else() -> None:
    plan = small_studies.plan()
    own = registration.digest(plan)
    fewer = dataclasses.replace(plan, arms=plan.arms[:1])
    for other in (
        dataclasses.replace(plan, question="Another?"),
        changed(plan, margin=0.02),
        changed(plan, alpha=0.01),
        changed(plan, looks=[2, 3]),
        fewer,
    ):
        assert registration.digest(other) != own
    elsewhere = dataclasses.replace(plan, workers=9, estimated_seconds=1.0, noise_sd=1.0)
    assert registration.digest(elsewhere) == own
    assert registration.digest(stored.plan_from_text(stored.plan_to_text(plan))) == own


def test_a_study_as_registered_deviates_in_nothing_and_stores_its_hash(tmp_path) -> None:
    home, plan = Home(tmp_path), small_studies.plan(replicates=3)
    study.create(plan, home)
    small_studies.finish(home, plan)
    view = study.view(plan.study, home)
    assert view.provenance[registration.HASH] == registration.digest(plan)
    assert registration.deviations(view) == []
    answer = registration.answer(view)
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert answer["registration"]["contrasts"] == ["csa - dense"]
    assert [v["arm"] for v in answer["verdicts"]] == ["csa"]


def test_another_question_at_the_second_run_is_a_deviation_and_the_first_one_stands(tmp_path) -> None:
    home, plan = Home(tmp_path), small_studies.plan()
    study.create(plan, home)
    study.create(dataclasses.replace(plan, question="Was it so?"), home)
    view = study.view(plan.study, home)
    assert view.plan.question == plan.question
    (text,) = registration.deviations(view)
    assert "Was it so?" in text
    study.create(plan, home)
    assert len(registration.deviations(study.view(plan.study, home))) == 1


def test_a_plan_changed_in_the_database_is_noticed(tmp_path) -> None:
    home, plan = Home(tmp_path), small_studies.plan()
    study.create(plan, home)
    text = stored.plan_to_text(changed(plan, margin=0.5))
    with db.connect(home).begin() as connection:
        connection.execute(update(db.study).values(plan=text))
    (told,) = registration.deviations(study.view(plan.study, home))
    assert registration.digest(plan) in told
    assert "changed after" in told


def test_a_second_study_of_the_same_contrasts_says_what_came_before(tmp_path) -> None:
    home = Home(tmp_path)
    first = small_studies.plan("first-1")
    study.create(first, home)
    study.create(small_studies.plan("idle-1"), home)
    small_studies.finish(home, first)
    alone = small_studies.plan("alone-1")
    study.create(dataclasses.replace(alone, arms=alone.arms[:1]), home)
    again = small_studies.plan("again-1", replicates=5)
    study.create(again, home)
    before = study.view(again.study, home).provenance[registration.AFTER]
    assert before == "first-1"


def test_lost_arms_and_pairs_are_named(tmp_path) -> None:
    home, plan = Home(tmp_path), small_studies.plan(arms=("dense", "csa", "breaks"), replicates=3)
    study.create(plan, home)
    small_studies.finish(home, plan)
    assert "breaks was not confirmed" in registration.deviations(study.view(plan.study, home))
    plan, rows = judged_studies.healthy()
    view = dataclasses.replace(
        study_views.view(), plan=plan, provenance={registration.HASH: registration.digest(plan)}
    )
    lost = judged_studies.edit(rows, judged_studies.confirm("csa", 0), state="failed", val_loss=None)
    found = judged_studies.judged(plan, lost)
    told = registration.deviations(dataclasses.replace(view, trials=lost, verdicts=(found,)))
    assert told == [
        "csa has 5 of 6 registered pairs",
        "1 confirm trials of csa came to no loss",
    ]
    running = dataclasses.replace(view, trials=lost, verdicts=(found,), state="running")
    assert registration.deviations(running) == []


def test_the_report_shows_hash_and_deviations(tmp_path) -> None:
    view = study_views.view()
    facts = {registration.HASH: "0" * 16, registration.AFTER: "earlier-1"}
    paths = report.write(dataclasses.replace(view, provenance=facts), tmp_path)
    page = " ".join(report_pages.Page(paths["HTML report"].read_text()).words)
    markdown, data = paths["Markdown"].read_text(), json.loads(paths["JSON"].read_text())
    assert registration.digest(view.plan) in page
    for text in registration.deviations(dataclasses.replace(view, provenance=facts)):
        assert text in page
        assert text in data["deviations"]
        assert text.split(":")[0].replace("_", r"\_") in markdown


def test_the_command_answers_in_words_and_as_data(tmp_path, capsys) -> None:
    home, plan = Home(tmp_path), small_studies.plan(replicates=3)
    study.create(plan, home)
    small_studies.finish(home, plan)
    questions.verdict(plan.study, str(tmp_path), as_json=True)
    assert json.loads(capsys.readouterr().out) == registration.answer(study.view(plan.study, home))
    questions.verdict(plan.study, str(tmp_path))
    shown = capsys.readouterr().out
    assert registration.digest(plan) in shown
    assert "csa vs dense" in shown
