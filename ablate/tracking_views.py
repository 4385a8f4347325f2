"""Ready-made pages of MLflow's own interface: experiment tags that hold its page state, opened by a link.

The format is internal to MLflow (seen in 3.17): best effort, and nothing depends on it. Where a version does
not read it, the link opens the plain run list.
"""

import base64
import json
import math
import zlib
from typing import Any

from ablate.records import StudyView
from ablate.tracking_runs import differing_params

TAG = "mlflow.sharedViewState."


def tags(view: StudyView, arm_runs: dict[str, str]) -> dict[str, str]:
    """Tag name to value, one per view.

    Args:
        arm_runs: arm name to the id of its summary run.
    """
    plan = view.plan
    axes = [name for name in differing_params(plan) if name != "steps"][:5]
    order = "metrics.`val/loss`"
    curve = _line("curve/val_loss", _late_losses(view))
    by_cost = [_scatter(f"cost/{key}", "val/loss") for key in ("train_flops_per_token", "kv_bytes_per_token")]
    mean = {"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": "arm"}]}
    states = {
        "table": _page(_TRIALS, order, columns=_columns(axes)),
        "charts": _page(_SOUND, order, charts=[curve, _parallel(["arm", "lr"], "val/loss"), *by_cost]),
        "arms": _page(_CONFIRMED, order, charts=[curve, *by_cost, _bar("val/loss")], groupBy=mean),
        "difference": _page(
            "tags.`ablate.kind` = 'arm'",
            order,
            charts=[_difference(arm_runs.get(plan.baseline.name, ""))],
            per_row=1,
        ),
    }
    return {TAG + key: _pack(state) for key, state in states.items()}


_TRIALS = "tags.`ablate.kind` = 'trial'"
_SOUND = f"{_TRIALS} and tags.`ablate.state` != 'diverged'"
_CONFIRMED = f"{_TRIALS} and tags.`ablate.phase` = 'confirm' and tags.`ablate.outcome` = 'complete'"


def _late_losses(view: StudyView) -> dict[str, float]:
    """Range of a loss axis that tells the ends of curves apart: losses from a quarter of the allowance on."""
    late = [
        point.val_loss
        for row in view.trials
        if row.result is not None and row.state == "complete"
        for point in row.result.curve
        if point.val_loss is not None
        and 4 * row.spec.charge(point.step) >= row.spec.allowance_mflop
        and math.isfinite(point.val_loss)
    ]
    if not late:
        return {}
    margin = 0.02 * (max(late) - min(late))
    return {"yMin": min(late) - margin, "yMax": max(late) + margin}


def _page(
    where: str,
    order: str,
    columns: list[str] | None = None,
    charts: list[dict[str, Any]] | None = None,
    per_row: int = 2,
    **more: Any,
) -> dict[str, Any]:
    """State of the run list and its charts: which runs, in which order, what is shown of them."""
    section = "ablate"
    return {
        "searchFilter": where,
        "orderByKey": order,
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns or ["metrics.`val/loss`", "params.`arm`"],
        "columnOrder": [],
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": [
            {
                **chart,
                "uuid": f"ablate-{i}",
                "metricSectionId": section,
                "deleted": False,
                "isGenerated": False,
            }
            for i, chart in enumerate(charts or [])
        ],
        "compareRunSections": [
            {
                "uuid": section,
                "name": "Comparison",
                "display": True,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
                "columns": per_row,
                "cardHeight": 380,
            }
        ],
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "groupBy": None,
        "groupsExpanded": {},
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        **more,
    }


def _columns(axes: list[str]) -> list[str]:
    return [
        "metrics.`val/loss`",
        "metrics.`val/bpb`",
        *(f"params.`{key}`" for key in ("arm", "lr", "phase", "replicate", *axes)),
        "tags.`ablate.outcome`",
    ]


def _line(metric: str, limits: dict[str, float]) -> dict[str, Any]:
    return {
        "type": "LINE",
        "runsCountToCompare": 10,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "selectedYAxisMetricKey": "metric",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": True,
        "useGlobalXaxisKey": True,
        "range": limits,
    }


def _bar(metric: str) -> dict[str, Any]:
    return {"type": "BAR", "runsCountToCompare": 10, "metricKey": metric}


def _scatter(x: str, y: str) -> dict[str, Any]:
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return {"type": "SCATTER", "runsCountToCompare": 100, **axes}


def _parallel(params: list[str], metric: str) -> dict[str, Any]:
    return {
        "type": "PARALLEL",
        "runsCountToCompare": 100,
        "selectedParams": params,
        "selectedMetrics": [metric],
        "showAllRuns": True,
    }


def _difference(baseline_run: str) -> dict[str, Any]:
    return {
        "type": "DIFFERENCE",
        "runsCountToCompare": 20,
        "chartName": "Arms against the baseline",
        "compareGroups": ["Model metrics", "Parameters"],
        "showChangeFromBaseline": True,
        "showDifferencesOnly": True,
        "baselineColumnUuid": baseline_run,
    }


def _pack(state: dict[str, Any]) -> str:
    packed = zlib.compress(json.dumps(state, sort_keys=True).encode(), 9)
    return "deflate;" + base64.b64encode(packed).decode()
