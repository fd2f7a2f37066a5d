"""Draw the dashboard without Grafana: its own panels and expressions, asked of a running Prometheus.

    python docs/deploy/grafana/render.py http://127.0.0.1:9090 dashboard.png --minutes 30

Needs matplotlib (`pip install 'medclip-triton[train]'`). What Grafana would show differs in looks alone.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import urllib.parse
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.dates import DateFormatter
from matplotlib.ticker import FuncFormatter, PercentFormatter

DASHBOARD = Path(__file__).parent / "dashboards" / "triton.json"
NOTICE = "Research use only. Not a medical device."
POINTS = 240
UNITS = {"reqps": "requests/s", "cps": "answers/s", "none": "", "short": ""}


def expression(text: str, rate_interval: str) -> str:
    """An expression of the dashboard with Grafana's own variable filled in."""
    return text.replace("$__rate_interval", rate_interval)


def ask(prometheus: str, call: str, **parameters: object) -> Any:
    """The `data` of Prometheus' answer; an expression that it does not understand raises `HTTPError`."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    query = urllib.parse.urlencode(parameters)
    with direct.open(f"{prometheus}/api/v1/{call}?{query}", timeout=30) as answer:
        return json.load(answer)["data"]


def legend(text: str, labels: dict[str, str]) -> str:
    """Grafana's `{{label}}` filled in."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), text)


def draw(axes: Axes, panel: dict[str, Any], series: list[tuple[str, list[Any]]]) -> None:
    """One panel; `series` are its legends and their values by time."""
    axes.set_title(panel["title"], fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.2)
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M"))
    if not series:
        axes.text(0.5, 0.5, panel["description"] or "no data", ha="center", transform=axes.transAxes, fontsize=8)
        axes.set_yticks([])
        return
    if panel["type"] == "heatmap":
        distribution(axes, series)
        return
    drawn = [(name, *values_by_time(values)) for name, values in series]
    if panel["fieldConfig"]["defaults"]["custom"].get("stacking"):
        times = drawn[0][1]
        axes.stackplot(times, [levels for _, _, levels in drawn], labels=[name for name, *_ in drawn], alpha=0.6)
    else:
        for name, times, levels in drawn:
            axes.plot(times, levels, label=name if levels.any() else None, linewidth=1.2)
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])  # room for the legend
    most = panel["fieldConfig"]["defaults"].get("max", np.inf)
    axes.set_yticks([tick for tick in axes.get_yticks() if tick <= most])
    scale(axes, panel["fieldConfig"]["defaults"]["unit"])
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=6, loc="upper left", frameon=False, ncol=3)


def local(instants: list[float]) -> npt.NDArray[np.datetime64]:
    """Seconds since 1970 as the clock of this machine shows them."""
    return np.array([datetime.fromtimestamp(at) for at in instants], dtype="datetime64[ms]")


def values_by_time(values: list[Any]) -> tuple[npt.NDArray[np.datetime64], npt.NDArray[np.float64]]:
    """Prometheus' pairs of time and text."""
    return local([at for at, _ in values]), np.array([float(text) for _, text in values])


def scale(axes: Axes, unit: str) -> None:
    """The unit on the axis."""
    if unit == "percentunit":
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    elif unit == "µs":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g} ms"))
    else:
        axes.set_ylabel(UNITS.get(unit, unit), fontsize=7)


def distribution(axes: Axes, series: list[tuple[str, list[Any]]]) -> None:
    """Cumulative buckets by time -> how many lie in each interval."""
    edges = sorted((float(bound), values) for bound, values in series if bound != "+Inf")
    instants = sorted({at for _, values in edges for at, _ in values})
    cumulative = np.array([[dict(values).get(at, "0") for at in instants] for _, values in edges], dtype=float)
    counts = np.diff(cumulative, axis=0, prepend=0)
    axes.pcolormesh(local(instants), np.arange(len(edges)), counts, cmap="Oranges")
    axes.set_yticks(range(len(edges))[::3], [f"≤ {edge:g}" for edge, _ in edges][::3])


def main(arguments: list[str] | None = None) -> None:
    """Draw all panels as they lie on the dashboard."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("prometheus", help="its address, such as http://127.0.0.1:9090")
    options.add_argument("out", type=Path, help="the picture")
    options.add_argument("--minutes", type=float, default=60, help="up to now")
    options.add_argument("--rate-interval", default="1m", help="at least four scrapes")
    told = options.parse_args(arguments)
    dashboard = json.loads(DASHBOARD.read_text())
    rows = max(panel["gridPos"]["y"] // 8 for panel in dashboard["panels"]) + 1
    figure, grid = plt.subplots(rows, 2, figsize=(12, 2.2 * rows), squeeze=False, layout="constrained")
    end = time.time()
    span = {"start": end - 60 * told.minutes, "end": end, "step": max(1, 60 * told.minutes / POINTS)}
    for panel in dashboard["panels"]:
        series = []
        for target in panel["targets"]:
            data = ask(told.prometheus, "query_range", query=expression(target["expr"], told.rate_interval), **span)
            series += [(legend(target["legendFormat"], found["metric"]), found["values"]) for found in data["result"]]
        axes = grid[panel["gridPos"]["y"] // 8][panel["gridPos"]["x"] // 12]
        draw(axes, panel, series)
        axes.set_xlim(*local([span["start"], end]))
    figure.suptitle(f"{dashboard['title']}: {NOTICE}", fontsize=10)
    figure.savefig(told.out, dpi=110)


if __name__ == "__main__":
    main()
