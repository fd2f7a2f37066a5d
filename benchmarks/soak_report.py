"""The report of a soak: faults, a table in Markdown, a picture, and all of it as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import numpy as np

from benchmarks.soak_ledger import GROWTH, Ledger, Samples
from xray_client import RESEARCH_USE

# A shorter soak is not checked for growth: the programs are still filling their caches.
GROWTH_FROM_MINUTES = 5.0


def faults_of(ledger: Ledger, samples: Samples) -> list[str]:
    """All faults of a soak: unanswered requests, wrong answers, and growth beyond what is allowed."""
    found = [f"{caller}: {count} lost" for caller in ledger.asked if (count := ledger.unanswered(caller))]
    found += ledger.faults
    if samples.seconds and samples.seconds[-1] >= GROWTH_FROM_MINUTES * 60:
        for name in samples.values:
            level, growth, allowed = samples.growth(name)
            if growth > allowed:
                found.append(f"{name}: grew by {growth:.0f} at a level of {level:.0f}; {allowed:.0f} are allowed")
    return found


def table(ledger: Ledger, samples: Samples) -> str:
    """Requests, outcomes and growth in Markdown."""
    lines = ["| | asked | outcomes | lost |", "|---|---|---|---|"]
    for caller, asked in sorted(ledger.asked.items()):
        outcomes = ", ".join(f"{count:,} {name}" for name, count in ledger.outcomes[caller].most_common())
        lines.append(f"| {caller} | {asked:,} | {outcomes} | {ledger.unanswered(caller)} |")
    if len(samples.seconds) > 3:
        lines += ["", "| second half | level | growth | allowed |", "|---|---|---|---|"]
        for name in samples.values:
            level, growth, allowed = samples.growth(name)
            lines.append(f"| {name} | {level:.0f} | {growth:+.1f} | {allowed:.0f} |")
    return "\n".join(lines)


def picture(samples: Samples, path: Path) -> None:
    """Draw memory and file handles over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 1, sharex=True, figsize=(8, 6), layout="constrained")
    for axis, unit in zip(axes, GROWTH, strict=True):
        for name, values in samples.values.items():
            if name.endswith(unit):
                axis.plot(np.array(samples.seconds) / 60, values, label=name.rpartition(", ")[0])
        axis.set_ylabel(unit)
        axis.set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    axes[1].set_xlabel("minutes")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def report(ledger: Ledger, samples: Samples, out: Path, *, planned_s: float, taken_s: float) -> list[str]:
    """Write soak.json and soak.png, print the table, and return the faults.

    Args:
        ledger: Requests and outcomes.
        samples: Memory and file handles.
        out: Folder for the files.
        planned_s: Planned length, seconds.
        taken_s: Seconds that it took.
    """
    faults = faults_of(ledger, samples)
    if samples.seconds:
        picture(samples, out / "soak.png")
    content = {
        "seconds": planned_s,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "asked": ledger.asked,
        "outcomes": ledger.outcomes,
        "faults": faults,
        "samples": {"seconds": samples.seconds, **samples.values},
        "notice": RESEARCH_USE,
    }
    (out / "soak.json").write_text(json.dumps(content, indent=1) + "\n")
    click.echo(table(ledger, samples))
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    click.echo(f"\n{taken_s:.0f} s on {os.cpu_count()} cores, load {load}; {out}")
    for fault in faults[:20]:
        click.echo(f"WRONG  {fault}")
    click.echo(f"{len(faults)} faults. {RESEARCH_USE}")
    return faults
