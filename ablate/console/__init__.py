"""What the command says in a terminal: the plan, a study as it runs, its end, and where it stands."""

from ablate.console.end_screen import final
from ablate.console.ladder_screen import multipliers
from ablate.console.ladder_screen import planned as ladder
from ablate.console.live_screen import live
from ablate.console.plan_screen import plan
from ablate.console.status_screen import status

__all__ = ["final", "ladder", "live", "multipliers", "plan", "status"]
