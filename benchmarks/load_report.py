"""Report of the measurements under load: Markdown, a table for the terminal, and a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.load_settings import AS_CONFIGURED
from benchmarks.machine import in_words
from xray_client import RESEARCH_USE, contract

Row = dict[str, Any]
_WAYS = {contract.MODEL_NAME: "prepared", contract.ENSEMBLE_MODEL: "encoded"}
_COLOURS = {contract.MODEL_NAME: "#0072B2", contract.ENSEMBLE_MODEL: "#D55E00"}
_MARK = "~"  # not stable


def markdown(report: Row) -> str:
    """Format all measurements as Markdown."""
    about = report["radiographs"]
    kind = "radiographs" if about["radiographs"] else "phantoms"
    lines = [
        f"{in_words(report['machine'])} {about['images']} {kind}, {report['encoded_kb']:.0f} KB encoded, on average.",
        f"`{_MARK}`: perf_analyzer's windows were more than 10 % apart, which it does not call stable.",
    ]
    for title, header, cells in _tables(report):
        lines += ["", f"**{title}**", "", "| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in cells]
    lines += [f"\nNot measured: {failed}" for failed in report["failed"]]
    return "\n".join([*lines, "", RESEARCH_USE]) + "\n"


def table(report: Row) -> Table:
    """Format all measurements for a terminal, one table below the other."""
    grid = Table.grid()
    for title, header, cells in _tables(report):
        part = Table(*header, title=title, title_justify="left")
        for row in cells:
            part.add_row(*row)
        grid.add_row(part)
    return grid


def _tables(report: Row) -> Iterable[tuple[str, Sequence[str], list[Sequence[str]]]]:
    """Yield title, header and cells of each part that was measured."""
    rows = [row for row in report["rows"] if not row["failed"]]
    ladder = [row for row in rows if row["part"] == "ladder"]
    if ladder:
        header = [
            "sent",
            "batching",
            "one in flight, p50 (p99) ms",
            "most images/s",
            "with",
            "p99 ms there",
            "engine's batch",
        ]
        yield "Load", header, [_ways_row(part) for part in _parts(ladder)]
    compared = [row for row in rows if row["part"] == "settings"]
    if compared:
        levels = sorted({row["concurrency"] for row in compared})
        header = ["setting", *(f"{level} in flight: images/s, p50 (p99) ms, batch" for level in levels)]
        yield "Settings of the server", header, _settings_rows(compared, levels)
    if report["saturated"]:
        header = [
            "network",
            "instances x threads",
            "",
            "served",
            "in process, batch 1 / 4",
            "ratio (rounds)",
            "MiB",
        ]
        yield (
            "Saturated, against the same engine in process",
            header,
            [row for entry in report["saturated"] for row in _saturated_rows(entry)],
        )
    if report["urgent"]:
        header = [
            "setting",
            "engine's batch",
            "routine, p50 (p99) ms",
            "STAT, p50 (p99) ms",
            "in batches",
            "STAT calls",
        ]
        yield (
            f"STAT in a flood of {report['urgent'][0]['flood']} routine radiographs",
            header,
            [_urgent_row(entry) for entry in report["urgent"]],
        )
    if "servers" in report:
        yield "Several servers", ["", ""], _servers_rows(report["servers"])


def _parts(ladder: list[Row]) -> list[list[Row]]:
    """Group the points by line of the picture."""
    keys = dict.fromkeys((row["model"], row["batch"], row["setting"]) for row in ladder)
    return [[row for row in ladder if (row["model"], row["batch"], row["setting"]) == key] for key in keys]


def _ways_row(part: list[Row]) -> Sequence[str]:
    first, best = part[0], max(part, key=lambda row: row["images_a_second"])
    return (
        _name(first),
        "yes" if first["setting"] == AS_CONFIGURED.name else "no",
        f"{first['p50_ms']:.1f} ({first['p99_ms']:.1f}){_mark(first)}",
        f"{best['images_a_second']:.1f}{_mark(best)}",
        f"{best['concurrency']} in flight",
        f"{best['p99_ms']:.0f}",
        f"{best['engine_batch']:.1f}",
    )


def _name(row: Row) -> str:
    return f"{_WAYS[row['model']]}, {row['batch']} a request"


def _mark(row: Row) -> str:
    return "" if row["stable"] else f" {_MARK}"


def _settings_rows(compared: list[Row], levels: list[int]) -> list[Sequence[str]]:
    found = {(row["setting"], row["concurrency"]): row for row in compared}
    return [
        [name, *(_setting_cell(found.get((name, level))) for level in levels)]
        for name in dict.fromkeys(row["setting"] for row in compared)
    ]


def _setting_cell(row: Row | None) -> str:
    if row is None:
        return "failed"
    return (
        f"{row['images_a_second']:.1f}, {row['p50_ms']:.1f} ({row['p99_ms']:.0f}), "
        f"{row['engine_batch']:.1f}{_mark(row)}"
    )


def _saturated_rows(entry: Row) -> list[Sequence[str]]:
    head = (entry["model"], f"{entry['instances']} x {entry['threads'] or 'one per core'}")
    faster = _against_the_best(entry["images_a_second"], max)
    cheaper = [1 / ratio for ratio in _against_the_best(entry["processor_ms"], min)]
    return [
        (*head, "images/s", *_medians(entry["images_a_second"]), _range(faster), f"{entry['memory_mib']:.0f}"),
        (*head, "processor ms an image", *_medians(entry["processor_ms"]), _range(cheaper), ""),
    ]


def _against_the_best(taken: dict[str, list[float]], best: Callable[[Iterable[float]], float]) -> list[float]:
    """Divide the served values by the best of the others, round by round."""
    alone = zip(*[values for name, values in taken.items() if name != "served"], strict=True)
    return [served / best(values) for served, values in zip(taken["served"], alone, strict=True)]


def _medians(taken: dict[str, list[float]]) -> tuple[str, str]:
    alone = [f"{np.median(values):.1f}" for name, values in taken.items() if name != "served"]
    return f"{np.median(taken['served']):.1f}", " / ".join(alone)


def _range(ratios: Sequence[float]) -> str:
    return f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _urgent_row(urgent: Row) -> Sequence[str]:
    batch, routine = urgent["batch_ms"], urgent["routine"]
    p50, p99 = np.percentile(urgent["stat_ms"] or [np.nan], [50, 99])
    return (
        urgent["setting"],
        f"{urgent['images_a_batch']:.1f} images, {batch:.0f} ms",
        f"{routine['p50_ms']:.0f} ({routine['p99_ms']:.0f})",
        f"{p50:.0f} ({p99:.0f})",
        f"{p50 / batch:.2f} ({p99 / batch:.2f})",
        str(len(urgent["stat_ms"])),
    )


def _servers_rows(servers: Row) -> list[Sequence[str]]:
    one, two = (servers["images_a_second"][name] for name in ("one", "two"))
    ratios = [b / a for a, b in zip(one, two, strict=True)]
    killed = servers["killed"]
    return [
        (f"one server with one core, {servers['model']}", f"{np.median(one):.1f} images/s"),
        ("two", f"{np.median(two):.1f} images/s"),
        ("ratio (rounds)", _range(ratios)),
        (
            "one of two killed at work",
            f"{killed['answered']} of {killed['asked']} answered, {killed['sent_again']} of them sent again",
        ),
    ]


def picture(report: Row, path: Path) -> None:
    """Draw latency against throughput, a line for each way and a point for each number of requests in flight."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    ladder = [row for row in report["rows"] if row["part"] == "ladder" and not row["failed"]]
    batches = sorted({row["batch"] for row in ladder})
    figure, panels = plt.subplots(
        1,
        max(1, len(batches)),
        figsize=(5 * max(1, len(batches)) + 1, 4.4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for panel, batch in zip(panels[0], batches, strict=False):
        for part in _parts([row for row in ladder if row["batch"] == batch]):
            _draw(panel, part)
        panel.set(xlabel="images/s", yscale="log", title=f"{batch} a request; at the points: in flight")
        panel.set_xlim(left=0)
        panel.grid(color="#eeeeee", which="both")
        panel.spines[["top", "right"]].set_visible(False)
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
    panels[0][0].set_ylabel("milliseconds, p99")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=len(labels), loc="outside upper center")
    figure.supxlabel(RESEARCH_USE, fontsize=7, color="#666666")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw(panel: Any, part: list[Row]) -> None:
    batching = part[0]["setting"] == AS_CONFIGURED.name
    panel.plot(
        [row["images_a_second"] for row in part],
        [row["p99_ms"] for row in part],
        "o-" if batching else "o--",
        markersize=4,
        color=_COLOURS[part[0]["model"]],
        alpha=1 if batching else 0.5,
        label=f"{_WAYS[part[0]['model']]}{'' if batching else ', no batching'}",
    )
    for row in part:
        panel.annotate(
            str(row["concurrency"]),
            (row["images_a_second"], row["p99_ms"]),
            textcoords="offset points",
            xytext=(5, 4 if batching else -9),
            fontsize=7,
            color=_COLOURS[row["model"]],
        )
