"""The ledger: nothing is spent that was not reserved, nothing reserved beyond a cap, nothing booked twice."""

import contextlib

import pytest
import small_studies
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import exc, update

from ablate import db, ledger, study
from ablate.home import Home


@pytest.fixture
def opened(any_home):
    """A study with caps of 100 for search, 50 for confirm and 10 for contingency."""
    home = any_home
    plan = small_studies.plan()
    study.create(plan, home)
    engine = db.connect(home)
    with engine.begin() as connection:
        for phase, cap in {"search": 100, "confirm": 50, "contingency": 10}.items():
            connection.execute(update(db.budget).where(db.budget.c.phase == phase).values(cap=cap))
    return engine, plan.study


def account(connection, name, phase):
    return next(a for a in ledger.accounts(connection, name) if a.phase == phase)


def test_reservation_is_denied_at_the_cap(opened):
    engine, name = opened
    with engine.begin() as connection:
        assert ledger.reserve(connection, name, "search", 60, "a")
        assert not ledger.reserve(connection, name, "search", 41, "b")
        assert ledger.reserve(connection, name, "search", 40, "b")
        assert ledger.available(connection, name, "search") == 0
        assert ledger.available(connection, name, "confirm") == 50
        ledger.check(connection, name, 160)


def test_an_entry_is_booked_once(opened):
    engine, name = opened
    with engine.begin() as connection:
        for _ in range(3):
            assert ledger.reserve(connection, name, "search", 60, "reserve")
            ledger.debit(connection, name, "search", 20, "debit")
        found = account(connection, name, "search")
        assert (found.spent, found.reserved) == (20, 40)
        ledger.check(connection, name, 160)


def test_nothing_is_spent_without_a_reservation(opened):
    engine, name = opened
    with engine.begin() as connection:
        ledger.reserve(connection, name, "search", 30, "a")
        with pytest.raises(ledger.LedgerError, match="never reserved"):
            ledger.debit(connection, name, "search", 31, "b")


def test_waste_moves_to_the_contingency_and_gives_back_to_the_phase(opened):
    engine, name = opened
    with engine.begin() as connection:
        ledger.reserve(connection, name, "search", 30, "a")
        ledger.debit(connection, name, "search", 30, "b")
        assert ledger.waste(connection, name, {"search": 8}, "c")
        assert (account(connection, name, "search").spent, account(connection, name, "search").reserved) == (
            22,
            8,
        )
        assert account(connection, name, "contingency").waste == 8
        assert not ledger.waste(connection, name, {"search": 3}, "d"), "only 2 are left"
        assert account(connection, name, "search").spent == 22, "the phase keeps what contingency cannot pay"
        ledger.check(connection, name, 160)


def test_the_database_itself_refuses_overspending(opened):
    engine, _ = opened
    with pytest.raises(exc.IntegrityError, match="within_cap"), engine.begin() as connection:
        connection.execute(update(db.budget).where(db.budget.c.phase == "search").values(spent=101))
    with pytest.raises(exc.IntegrityError, match="no_negative_amounts"), engine.begin() as connection:
        connection.execute(update(db.budget).where(db.budget.c.phase == "search").values(reserved=-1))


def test_caps_beyond_the_total_are_refused(opened):
    engine, name = opened
    with engine.begin() as connection, pytest.raises(ValueError, match="more than the total"):
        ledger.open_accounts(connection, name, {"a": 6, "b": 5}, 10)


def test_the_checker_finds_a_forged_account(opened):
    engine, name = opened
    with engine.begin() as connection:
        ledger.reserve(connection, name, "search", 30, "a")
        connection.execute(update(db.budget).where(db.budget.c.phase == "search").values(reserved=29))
        with pytest.raises(AssertionError, match="entries sum to"):
            ledger.check(connection, name, 160)


actions = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "debit", "refund", "waste"]),
        st.sampled_from(["search", "confirm"]),
        st.integers(0, 60),
        st.integers(0, 12),  # keys repeat, as deliveries do after a crash
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(actions=actions)
def test_any_sequence_keeps_the_invariant(tmp_path_factory, actions):
    home = Home(tmp_path_factory.mktemp("home"))
    plan = small_studies.plan(steps=1, points=5, replicates=2, contingency=20)
    study.create(plan, home)
    with db.connect(home).begin() as connection:
        for kind, phase, amount, key in actions:
            with contextlib.suppress(ledger.LedgerError):
                change = ({phase: amount},) if kind == "waste" else (phase, amount)
                getattr(ledger, kind)(connection, plan.study, *change, f"{kind}-{key}")
            ledger.check(connection, plan.study, plan.total_mflop)
