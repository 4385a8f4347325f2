"""Faults on demand, for tests of what must survive them. Nothing happens outside of tests.

`ABLATE_TESTING=1 ABLATE_FAULT=claim.post:2:kill` ends the process without warning when it passes the named
point for the second time.
"""

import os
import signal
from collections import Counter

_passed: Counter[str] = Counter()


def point(name: str) -> None:
    """A place where a test may end this process."""
    if os.environ.get("ABLATE_TESTING") != "1" or "ABLATE_FAULT" not in os.environ:
        return
    where, nth, action = os.environ["ABLATE_FAULT"].split(":")
    _passed[name] += 1
    if name == where and _passed[name] == int(nth) and action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
