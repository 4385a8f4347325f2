"""Ready-made pages of MLflow's own interface: experiment tags that hold its page state, opened by a link.

The format is internal to MLflow (seen in 3.17): best effort, and nothing depends on it. Where a version does not
read it, the link opens the plain run list.
"""

import base64
import json
import zlib
from typing import Any

from ablate.records import Plan
from ablate.tracking_runs import differing_params

TAG = "mlflow.sharedViewState."


def tags(plan: Plan, arm_runs: dict[str, str]) -> dict[str, str]:
    """Tag name to value, one per view.

    Args:
        arm_runs: arm name to the id of its summary run.
    """
    axes = [name for name in differing_params(plan) if name != "steps"][:5] or ["arm"]
    states = {
        "table": _page(_TRIALS, "metrics.`val/loss`", columns=_columns(axes)),
        "charts": _page(
            _TRIALS,
            "metrics.`val/loss`",
            charts=[
                _line("curve/val_loss"),
                _scatter("cost/train_flops_per_token", "val/loss"),
                _scatter("cost/kv_bytes_per_token", "val/loss"),
                _parallel(["arm", "lr"], "val/loss"),
            ],
        ),
        "arms": _page(
            _CONFIRMED,
            "metrics.`val/loss`",
            columns=["metrics.`val/loss`", "metrics.`val/bpb`", "params.`arm`"],
            charts=[_line("curve/val_loss"), _bar("val/loss"), _scatter("cost/params", "val/loss")],
            groupBy={
                "aggregateFunction": "average",
                "groupByKeys": [{"mode": "param", "groupByData": "arm"}],
            },
        ),
        "difference": _page(
            "tags.`ablate.kind` = 'arm'",
            "metrics.`val/loss`",
            charts=[_difference(arm_runs.get(plan.baseline.name, ""))],
        ),
    }
    return {TAG + key: _pack(state) for key, state in states.items()}


_TRIALS = "tags.`ablate.kind` = 'trial'"
_CONFIRMED = f"{_TRIALS} and tags.`ablate.phase` = 'confirm' and tags.`ablate.outcome` = 'complete'"


def _page(
    where: str,
    order: str,
    columns: list[str] | None = None,
    charts: list[dict[str, Any]] | None = None,
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
        *(f"metrics.`{key}`" for key in ("val/loss", "val/bpb")),
        *(f"params.`{key}`" for key in ("arm", "lr", "phase", "replicate")),
        *(f"params.`{key}`" for key in axes),
        *(f"metrics.`{key}`" for key in ("cost/tokens", "cost/params", "cost/kv_bytes_per_token")),
        "tags.`ablate.outcome`",
        "attributes.`Duration`",
    ]


def _line(metric: str) -> dict[str, Any]:
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
        "range": {},
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
        "compareGroups": ["Model Metrics", "Parameters"],
        "showChangeFromBaseline": True,
        "showDifferencesOnly": True,
        "baselineColumnUuid": baseline_run,
    }


def _pack(state: dict[str, Any]) -> str:
    packed = zlib.compress(json.dumps(state, sort_keys=True).encode(), 9)
    return "deflate;" + base64.b64encode(packed).decode()
