"""What a study fixes before anything is spent: question, contrasts, margin, stopping rule."""

from ablate.schema import Sweep


def stopping_rule(sweep: Sweep) -> str:
    """When the study ends, in one sentence or two."""
    search, confirm = sweep.search, sweep.confirm
    tuned = f"{search.points} learning rates per arm, up to {search.extensions} more where the best is at the edge"
    if not confirm.looks:
        return (
            f"Fixed: {tuned}, then {confirm.replicates} fresh seeds per arm; or the end of the compute. No look "
            "at results changes it."
        )
    looks = ", ".join(map(str, confirm.looks))
    return (
        f"{tuned[:1].upper()}{tuned[1:]}, then fresh seeds with looks at {looks}: an arm gets no more once a look "
        "finds a difference or equivalence, or hardly any chance of either. The error rate is spent over the looks "
        "as O'Brien and Fleming's boundaries do; or the end of the compute."
    )
