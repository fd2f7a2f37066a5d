"""Training throughput against a plain loop, side by side, and how time and memory grow with the set.

    make bench PART=training DATA=chest_xray                              # images a second, ours and the plain loop
    make bench PART=training DATA=chest_xray ARGS="--sizes 1000,5000"     # an epoch of sets of these sizes

The plain loop trains the same network on the same radiographs with the same augmentation and batch size, as MedCLIP's
own trainer does: every radiograph is decoded by Pillow and padded each time it is drawn, arithmetic is 32-bit, tensors
have PyTorch's standard layout. Each measurement is a process of its own; the two sides take turns.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import torch
from rich.table import Table

from benchmarks.medclip_reader import read_as_medclip
from finetune.data.datamodule import prepare_data
from finetune.data.sampling import CachedRadiographs
from finetune.models.classifier import ModelConfig, RadiographClassifier
from finetune.settings import DataSettings, TrainSettings
from finetune.training.environment import peak_memory
from finetune.training.hardware import keep_freed_memory, lightning_precision
from finetune.training.trainer import FineTuning
from xray_client.console import console, plain_errors, track

WARM_UP_STEPS = 3


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__.split("\n")[0]
)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Radiographs, as for finetune.run.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path("runs/cache"), help="Decoded images.")
@click.option("--batch-size", type=click.IntRange(2), default=32, help="Radiographs per step.")
@click.option("--steps", type=click.IntRange(1), default=12, help="Timed steps of each measurement.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="Measurements of each side.")
@click.option(
    "--sizes", type=str, default=None, help="Time an epoch over sets of so many radiographs instead, comma-separated."
)
@click.option("--measure", hidden=True, default=None)
def main(
    data: Path, cache: Path, batch_size: int, steps: int, rounds: int, sizes: str | None, measure: str | None
) -> None:
    """Run the command line; see the module's text."""
    with plain_errors():
        if measure is not None:
            click.echo(json.dumps(_measure(measure, data, cache, batch_size, steps)))
            return

        def ask(what: str) -> dict[str, float]:
            command = [sys.executable, "-m", "benchmarks.training", "--measure", what, "--data", data, "--cache", cache]
            options = ["--batch-size", batch_size, "--steps", steps]
            words = [str(word) for word in (*command, *options)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                raise click.ClickException(
                    done.stderr.strip().splitlines()[-1] if done.stderr else "measurement failed"
                )
            measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
            return measured

        if sizes is None:
            turns = [side for _ in range(rounds) for side in ("plain", "ours")]
            _compare([(side, ask(side)) for side in track(turns, "measuring", total=len(turns))])
        else:
            wanted = [int(size) for size in sizes.split(",")]
            _growth([(size, ask(str(size))) for size in track(wanted, "measuring", total=len(wanted))])


def _compare(measured: list[tuple[str, dict[str, float]]]) -> None:
    rate = {
        side: statistics.median(values["images_per_second"] for name, values in measured if name == side)
        for side in ("plain", "ours")
    }
    table = Table("", "images/s, median", "ratio", title="training, one process")
    table.add_row("plain loop: decoded each time, 32-bit", f"{rate['plain']:.1f}", "1")
    table.add_row("finetune.run: cache, channels-last, fixed batch statistics", f"{rate['ours']:.1f}",
                  f"{rate['ours'] / rate['plain']:.2f}")  # fmt: skip
    console.print(table)


def _growth(measured: list[tuple[int, dict[str, float]]]) -> None:
    table = Table("radiographs", "seconds an epoch", "images/s", "peak memory, GB")
    for size, values in measured:
        table.add_row(f"{size:,}", f"{values['seconds']:.0f}", f"{size / values['seconds']:.1f}",
                      f"{values['peak_memory'] / 1e9:.2f}")  # fmt: skip
    console.print(table)


class DecodedEachTime(CachedRadiographs):
    """Radiographs of a plain loop: Pillow decodes and pads the file whenever it is drawn."""

    files: list[Path]

    def __getitem__(self, drawn: int | tuple[int, int]) -> tuple[torch.Tensor, int]:
        index, seed = drawn if isinstance(drawn, tuple) else (drawn, 0)
        image = torch.from_numpy(read_as_medclip(self.files[index]))[None]
        torch.manual_seed(seed)
        return self.transform(image), int(self.labels[index])  # type: ignore[misc]


def _measure(what: str, data: Path, cache: Path, batch_size: int, steps: int) -> dict[str, float]:
    """Take one measurement in this process: "plain", "ours", or the number of radiographs of an epoch."""
    datamodule = prepare_data(DataSettings(data), cache)
    classifier = RadiographClassifier(ModelConfig(preprocessing=datamodule.preprocessing))
    part = np.resize(datamodule.indices("train"), int(what)) if what.isdigit() else datamodule.indices("train")
    kind = DecodedEachTime if what == "plain" else CachedRadiographs
    dataset = kind(datamodule.cache.images, datamodule.cache.rows[part], datamodule.labels[part], augmentation=1.0)
    bfloat16 = what != "plain" and lightning_precision("auto") == "bf16-mixed"
    if isinstance(dataset, DecodedEachTime):
        dataset.files = [datamodule.cache.radiographs[i].path for i in part]
        classifier.memory_format = torch.contiguous_format
        classifier.tower.to(memory_format=torch.contiguous_format)
    else:
        keep_freed_memory()
    task = FineTuning(classifier, TrainSettings(), weights=None, on_features=False).train()
    if what != "plain":
        task.on_train_epoch_start()  # batch statistics are fixed, as `finetune.run` has them
    optimizer = torch.optim.AdamW(classifier.parameters(), 1e-5)
    random = np.random.default_rng(0)
    total = -(-len(dataset) // batch_size) if what.isdigit() else WARM_UP_STEPS + steps
    started = time.perf_counter()
    for step in range(total):
        if step == WARM_UP_STEPS and not what.isdigit():
            started = time.perf_counter()
        drawn = [dataset[int(i), int(i)] for i in random.integers(0, len(dataset), batch_size)]
        images, labels = torch.stack([image for image, _ in drawn]), torch.tensor([label for _, label in drawn])
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            embedding = task.embed(images, classifier)
        loss = torch.nn.functional.cross_entropy(classifier.logits_of_embedding(embedding), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    seconds = time.perf_counter() - started
    timed = len(dataset) if what.isdigit() else steps * batch_size
    return {"images_per_second": timed / seconds, "seconds": seconds, "peak_memory": peak_memory()}


if __name__ == "__main__":
    main()
