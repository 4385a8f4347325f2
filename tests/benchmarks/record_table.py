"""Write a table of tiny models, for `search_quality.py`, from a study that trained the points of a small space:

    ablate run sweep=schedule_search tracking=off home=HOME sweep.search.sampler=brute_force ...
    python tests/benchmarks/record_table.py STUDY HOME

The study's own overrides are stored with the table; they are the command that makes it again.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from ablate import reading, study
from ablate.home import Home
from ablate.report import reproduce

OUT = Path(__file__).parent / "tiny_models.json"


def table(name: str, home: Home) -> dict[str, Any]:
    """Every trained point of a study's space, with where it is from, and how many points the space has."""
    view = reading.read(study.find(home, name), home)
    assert view.search is not None
    done = [p for p in view.search.proposals if p.state == "complete"]
    values = {key: sorted({p.params[key] for p in done}, key=str) for key in done[0].params}
    space = {key: found for key, found in values.items() if len(found) > 1}
    run = view.plan.registered.run
    return {
        "what": "held-out loss in nats per token of tiny models, each trained once with equal FLOPs on one seed",
        "study": view.name,
        "command": reproduce.reproduction(run, view.name).short,
        "compute_per_model": f"{view.plan.trial_mflop} MFLOP",
        "model_before_the_search": view.plan.baseline.variant.describe(),
        "seed": view.plan.search_seed,
        "data": f"{run.data.name} {view.plan.data_fingerprint[:16]}",
        "provenance": {k: view.provenance[k] for k in ("python", "torch", "ablate") if k in view.provenance},
        "points": math.prod(len(found) for found in space.values()),
        "space": space,
        "rows": sorted([*(p.params[key] for key in space), round(p.value or 0.0, 5)] for p in done),
    }


def main() -> None:
    """Write the table beside this file, a row a line."""
    name, home = sys.argv[1:]
    whole = table(name, Home(Path(home)))
    rows = ",\n".join("  " + json.dumps(row) for row in whole.pop("rows"))
    head = json.dumps(whole, indent=1)[:-2]
    OUT.write_text(f'{head},\n "rows": [\n{rows}\n ]\n}}\n')
    print(f"{OUT}: {rows.count(chr(10)) + 1} models")


if __name__ == "__main__":
    main()
