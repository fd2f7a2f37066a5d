"""Report of the engines' measurements: Markdown tables and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.machine import in_words

ENGINES = ("PyTorch", "ONNX Runtime", "OpenVINO FP32", "OpenVINO INT8")
_COLOURS = ("#999999", "#4477aa", "#228833", "#cc6677")
_STEPS = {"onnx": "ONNX", "fp16": "FP16", "rtx": "TensorRT-RTX", "int8": "INT8", "plan": "TensorRT"}


def markdown(report: dict[str, Any]) -> str:
    """Format all measurements as Markdown tables."""
    machine = report["machine"]
    clock = {"cpu": "Processor time of one thread", "wall": "Wall clock, all cores"}[machine["clock"]]
    lines = [
        f"{clock}. {in_words(machine)}",
        "",
        "| network | step | seconds | MB | nodes | probability | heatmap | novelty | decisions changed | images |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model, measured in report["models"].items():
        for step in measured["build"]["steps"]:
            lines.append(_step_row(model, step))
    lines += [
        "",
        "| network | engine | one image, p50 (p95) ms | times PyTorch | images/s, best | times PyTorch | of peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, measured in report["models"].items():
        lines += [_speed_row(model, engine, measured) for engine in ENGINES]
    lines += ["", "| one image a call, images/s | " + " | ".join(report["models"]) + " |"]
    lines.append("|---" * (len(report["models"]) + 1) + "|")
    for way in next(iter(report["models"].values()))["instances"]:
        rates = [f"{measured['instances'][way]:.1f}" for measured in report["models"].values()]
        lines.append(f"| {way} | " + " | ".join(rates) + " |")
    for model, measured in report["models"].items():
        lines += ["", f"{model}: {measured['gflop_an_image']:.2f} GFLOP an image, "
                  f"peak {measured['peak_gflop_a_second']:.0f} GFLOP/s."]  # fmt: skip
        if measured["gpu"]:
            times = ", ".join(f"{way}: {ms:.2f} ms" for way, ms in measured["gpu"]["milliseconds"].items())
            lines += ["", f"{measured['gpu']['name']}: {times}."]
    return "\n".join(lines) + "\n"


def _step_row(model: str, step: dict[str, Any]) -> str:
    size = sum(artefact["bytes"] for artefact in step["artefacts"]) / 1e6
    parity = step["parity"]
    cells = [
        model,
        _STEPS[step["name"]],
        f"{step['seconds']:.0f}" if step["seconds"] >= 1 else f"{step['seconds']:.1f}",
        f"{size:.1f}",
        str(step["details"].get("nodes", "")),
    ]
    if parity:
        cells += [f"{parity[name]:.1e}" for name in ("probability", "heatmap", "novelty")]
        cells += [str(parity["decisions_changed"]), str(parity["images"])]
    else:
        cells += ["not run here", "", "", "", ""]
    return "| " + " | ".join(cells) + " |"


def _speed_row(model: str, engine: str, measured: dict[str, Any]) -> str:
    p50, p95 = measured["latency_ms"][engine]
    best = measured["throughput"][engine]
    plain, plain_best = measured["latency_ms"]["PyTorch"][0], measured["throughput"]["PyTorch"]
    rate = best["images_a_second"]
    share = rate * measured["gflop_an_image"] / measured["peak_gflop_a_second"]
    return (
        f"| {model} | {engine} | {p50:.1f} ({p95:.1f}) | {plain / p50:.2f} | {rate:.1f} (batch {best['batch']}) | "
        f"{rate / plain_best['images_a_second']:.2f} | {share:.0%} |"
    )


def picture(report: dict[str, Any], path: Path) -> None:
    """Draw two panels of bars: time of one image and throughput, as multiples of PyTorch's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = list(report["models"])
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for panel, title, value in (
        (panels[0], "One image at a time: how many times as quick as PyTorch", _quicker),
        (panels[1], "Images a second at the best batch, PyTorch = 1", _more),
    ):
        for i, (engine, colour) in enumerate(zip(ENGINES, _COLOURS, strict=True)):
            heights = [value(report["models"][model], engine) for model in models]
            places = [place + (i - 1.5) * 0.2 for place in range(len(models))]
            bars = panel.bar(places, heights, 0.19, color=colour, label=engine)
            panel.bar_label(bars, fmt="%.1f", fontsize=8, padding=1)
        panel.set_xticks(range(len(models)), models)
        panel.set_title(title, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(y=0.12)
    panels[0].legend(fontsize=8, frameon=False, loc="upper left")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _quicker(measured: dict[str, Any], engine: str) -> float:
    return float(measured["latency_ms"]["PyTorch"][0] / measured["latency_ms"][engine][0])


def _more(measured: dict[str, Any], engine: str) -> float:
    best = measured["throughput"]
    return float(best[engine]["images_a_second"] / best["PyTorch"]["images_a_second"])
