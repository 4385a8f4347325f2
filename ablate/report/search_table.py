"""The tables of an open search: proposals, and what fresh seeds left of the finalists."""

from ablate.records import StudyView
from ablate.report import formats
from ablate.report.table import Column, Row, Table
from ablate.searched import Searched

CAPTION = "Proposals of the open search"


def tables(view: StudyView) -> list[Table]:
    """The front where there is more than one objective, finalists, and every proposal; none without a search."""
    if view.search is None:
        return []
    every = _proposals(view.search, CAPTION)
    front = Table(
        f"Pareto front of {', '.join(view.search.objectives)}",
        every.columns,
        tuple(row for row in every.rows if row["front"]),
    )
    found = [_finalists(view.search)] if view.search.finalists else []
    return [*([front] if len(view.search.objectives) > 1 and front.rows else []), *found, every]


def notes(found: Searched) -> list[str]:
    """What the numbers mean, in sentences."""
    counts = ", ".join(f"{number} {state}" for state, number in found.counts.items())
    lines = [
        f"{len(found.proposals)} proposals: {counts}. Every one that was trained had the same compute; duplicates, "
        "and what a constraint or the model's sizes rule out, cost nothing.",
        "Losses of the search are those of one seed, and its best is chosen for being low: they enter no verdict. "
        "Shrinkage is the loss on fresh seeds less that of the tuned rate on the search's seed.",
    ]
    if found.baseline_shrinkage is not None:
        change = formats.signed(found.baseline_shrinkage)
        lines.append(f"That of the baseline is {change} nats.")
    return lines


def _finalists(found: Searched) -> Table:
    rows: list[Row] = [
        {
            "arm": finalist.arm,
            "proposal": finalist.proposal,
            "search": finalist.search,
            "tuned": finalist.tuned,
            "confirmed": finalist.confirmed,
            "seeds": finalist.seeds,
            "shrinkage": finalist.shrinkage,
        }
        for finalist in found.finalists
    ]
    columns = (
        Column("Finalist", lambda r: r["arm"], numeric=False),
        Column("Proposal", lambda r: str(r["proposal"])),
        Column("Search, nats", lambda r: formats.loss(r["search"])),
        Column("Tuned", lambda r: formats.loss(r["tuned"])),
        Column("Fresh seeds", lambda r: formats.loss(r["confirmed"])),
        Column("Seeds", lambda r: str(r["seeds"])),
        Column("Shrinkage", lambda r: formats.signed(r["shrinkage"])),
    )
    return Table("Finalists, from search to fresh seeds", columns, tuple(rows))


def _proposals(found: Searched, caption: str) -> Table:
    rows: list[Row] = [
        {
            "proposal": proposal.number,
            "sampler": proposal.sampler,
            "state": proposal.state,
            "loss": proposal.value,
            "schedule": proposal.schedule,
            "overrides": ", ".join(f"{key}={value}" for key, value in proposal.overrides.items()),
            "lr": proposal.lr,
            "front": proposal.number in found.front,
            "mflop": proposal.mflop,
            "kv_bytes_per_token": proposal.costs.get("kv_bytes_per_token"),
            "train_flops_per_token": proposal.costs.get("train_flops_per_token"),
            "params": proposal.costs.get("params"),
            "reason": proposal.reason,
        }
        for proposal in found.proposals
    ]
    columns = (
        Column("Proposal", lambda r: str(r["proposal"])),
        Column("By", lambda r: r["sampler"], numeric=False),
        Column("Became", lambda r: r["state"], numeric=False, style="badge"),
        Column("Loss, nats", lambda r: formats.loss(r["loss"])),
        Column("Schedule", lambda r: r["schedule"], numeric=False, style="code", wide=True),
        Column("Sets", lambda r: r["overrides"], numeric=False, style="code", wide=True),
        Column("KV bytes/token", lambda r: formats.general(r["kv_bytes_per_token"])),
        Column("Train FLOP/token", lambda r: formats.flops(r["train_flops_per_token"])),
        Column("Charged", lambda r: formats.compute(r["mflop"])),
        Column("Note", lambda r: r["reason"], numeric=False, wide=True),
    )
    return Table(caption, columns, tuple(rows))
