"""Search for better settings with Optuna; stop it at any time and call it again to go on.

    python -m finetune.tune --data chest_xray --out runs/search --trials 30
    python -m finetune.run --data chest_xray --config runs/search/best.json

Several processes, on one machine or on several that share the folder, may work on one search: start the same command
more than once. Each trial trains on the training patients and is scored by validation AUROC; poor ones are pruned. The
test part is never used.

The folder holds the journal (Optuna's own, which makes it resumable), trials.csv, best.json and pictures.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from xray_client import RESEARCH_USE, XrayError
from xray_client.console import console, plain_errors, signals_interrupt
from xray_client.files import write_atomically

from .command_line import setting
from .settings import OBJECTIVES, DataSettings, ModelSettings, OutputSettings, TrainSettings

if TYPE_CHECKING:
    import optuna

    from finetune.data.datamodule import DataModule

STUDY = "medclip-triton"
JOURNAL_FILE, BEST_FILE = "journal.log", "best.json"
ANY_OBJECTIVE = "any"


class SearchError(XrayError):
    """A search cannot be made or continued."""


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__.split("\n")[0]
)
@setting(DataSettings, "data")
@setting(OutputSettings, "out", default=Path("runs/search"), help="Folder of the search; created, or continued.")
@setting(OutputSettings, "cache", help="Folder of decoded images, shared by runs.  [default: OUT/../cache]")
@click.option(
    "--trials", type=click.IntRange(1), default=30, help="Number of trials at which to finish, over all processes."
)
@setting(TrainSettings, "epochs", default=4, minimum=1, help="Maximum number of epochs of a trial.")
@setting(TrainSettings, "head_epochs", help="Epochs of the head stage of a trial (0 = off).")
@setting(DataSettings, "val_fraction")
@setting(DataSettings, "splits")
@setting(DataSettings, "labels")
@setting(DataSettings, "conflicts")
@setting(TrainSettings, "balance")
@setting(
    TrainSettings,
    "degraded_validation",
    help="Frequency of degradations in the radiographs of validation, each always degraded in the same way; the score "
    "is then that of fine-tuning alone (0 = off).",
)
@setting(
    TrainSettings,
    "objective",
    default=ANY_OBJECTIVE,
    choices=(ANY_OBJECTIVE, *OBJECTIVES),
    help="Training objective, as for finetune.run; any = search for it too.",
)
@setting(TrainSettings, "seed", help="Seed of split, initial weights and sampling; the same for all trials.")
def main(
    out: Path, cache: Path | None, trials: int, objective: str, seed: int, data: Path, splits: Path | None,
    val_fraction: float, labels: str | None, conflicts: str, **training: Any,
) -> None:  # fmt: skip
    """Run the command line."""
    from finetune.data.datamodule import prepare_data

    with plain_errors(), signals_interrupt():
        study = open_study(out)
        conditions = {"data": str(data.resolve()), "val_fraction": val_fraction,
                      "splits": splits and str(splits.resolve()), "labels": labels, "conflicts": conflicts,
                      "seed": seed, **training}  # fmt: skip
        _check_conditions(study, conditions, out)
        base = TrainSettings(patience=training["epochs"], seed=seed, **training)
        source = DataSettings(
            data, labels=labels, conflicts=conflicts, splits=splits, val_fraction=val_fraction, seed=seed
        )
        datamodule = prepare_data(source, cache or out.parent / "cache")
        try:
            search(study, datamodule, base, trials=trials, objective=objective)
        except KeyboardInterrupt:
            click.echo("interrupted; the same command goes on")
        write_summary(study, base, out)
        click.echo(RESEARCH_USE)


def open_study(folder: Path) -> optuna.Study:
    """Create or open the search in a folder; trials of killed processes go back to the queue."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL_FILE))),
        study_name=STUDY,
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(constant_liar=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1),
    )
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        if _is_dead(trial.user_attrs):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params, skip_if_exists=False)
    return study


def _is_dead(worker: dict[str, Any]) -> bool:
    """Check if a trial's process has ended; one on another machine is taken to be alive."""
    if worker.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(worker["process"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _check_conditions(study: optuna.Study, conditions: dict[str, Any], folder: Path) -> None:
    """Require the conditions that the search was started with: only trials under the same ones are comparable."""
    before = study.user_attrs.get("judged_by")
    if before is None:
        study.set_user_attr("judged_by", conditions)
    elif before != conditions:
        changed = [f"{name} was {before.get(name)}" for name, value in conditions.items() if before.get(name) != value]
        raise SearchError(
            f"this search was started differently: {', '.join(changed)}",
            source=str(folder),
            remedy="start another one with --out",
        )


def suggest(trial: optuna.Trial, objective: str) -> dict[str, Any]:
    """Settings of one trial: dropout and fields of `TrainSettings`."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 5e-3, log=True),
        "tower_learning_rate": trial.suggest_float("tower_learning_rate", 2e-5, 1e-3, log=True),
        "layer_decay": trial.suggest_float("layer_decay", 0.6, 1.0),
        "frozen_stages": trial.suggest_int("frozen_stages", 0, 5),
        "batch_size": trial.suggest_categorical("batch_size", [16, 32, 64]),
        "weight_decay": trial.suggest_float("weight_decay", 1e-4, 0.3, log=True),
        "dropout": trial.suggest_float("dropout", 0.0, 0.5),
        "label_smoothing": trial.suggest_float("label_smoothing", 0.0, 0.1),
        "augmentation": trial.suggest_float("augmentation", 0.5, 2.0),
        "degradation": trial.suggest_float("degradation", 0.0, 1.5),
        "average": trial.suggest_categorical("average", [0.0, 0.99, 0.998]),
        "objective": trial.suggest_categorical("objective", OBJECTIVES) if objective == ANY_OBJECTIVE else objective,
    }


def search(study: optuna.Study, datamodule: DataModule, base: TrainSettings, *, trials: int, objective: str) -> None:
    """Run trials until `trials` are complete or pruned, over this and all other processes."""
    from dataclasses import asdict, replace

    import optuna
    from lightning.pytorch.callbacks import Callback
    from optuna.trial import TrialState

    from finetune.data.records import TRAIN, VAL
    from finetune.training.experiment import Experiment

    class Report(Callback):
        """Report each epoch to Optuna, and stop when it prunes the trial."""

        def __init__(self, trial: optuna.Trial) -> None:
            self.trial = trial

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.trial.report(float(trainer.callback_metrics["val_auroc"]), trainer.current_epoch)
            if self.trial.should_prune():
                raise optuna.TrialPruned

    # Every trial's tower starts from the same weights, so the features of the head stage are the same too.
    features = {name: Experiment(datamodule, ModelSettings(), base).features_of(name) for name in (TRAIN, VAL)}

    def train(trial: optuna.Trial) -> float:
        trial.set_user_attr("host", socket.gethostname())
        trial.set_user_attr("process", os.getpid())
        settings = suggest(trial, objective)
        started = time.monotonic()
        dropout = settings.pop("dropout")
        experiment = Experiment(datamodule, ModelSettings(dropout=dropout), replace(base, **settings))
        experiment.features = dict(features)
        experiment.fit(callbacks=[Report(trial)])
        trial.set_user_attr("seconds", round(time.monotonic() - started, 1))
        # The head stage is scored on undegraded radiographs, which is easier.
        return experiment.aurocs["fine_tuned"] if base.degraded_validation else max(experiment.aurocs.values())

    def tell(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        value = f"{trial.value:.4f}" if trial.value is not None else "-"
        console.print(f"trial {trial.number}: {trial.state.name.lower()}, validation AUROC {value}")

    if not study.trials:
        defaults = {**asdict(base), "dropout": ModelSettings.dropout}
        study.enqueue_trial({name: defaults[name] for name in suggest(_Names(), ANY_OBJECTIVE)})  # type: ignore[arg-type]
    done = (TrialState.COMPLETE, TrialState.PRUNED)
    while len(study.get_trials(deepcopy=False, states=done)) < trials:
        study.optimize(train, n_trials=1, callbacks=[tell])


class _Names:
    """Trial that suggests nothing, to get the names of the searched settings."""

    def __getattr__(self, _: str) -> Any:
        return lambda name, *args, **options: None


def write_summary(study: optuna.Study, base: TrainSettings, folder: Path) -> None:
    """Write best.json for `finetune.run --config`, trials.csv, and Optuna's pictures of history and importances."""
    from optuna.trial import TrialState

    complete = study.get_trials(states=[TrialState.COMPLETE])
    if not complete:
        console.print("no trial is complete yet")
        return
    study.trials_dataframe(attrs=("number", "state", "value", "params", "user_attrs")).to_csv(
        folder / "trials.csv", index=False
    )
    write_atomically(folder / BEST_FILE, json.dumps({**study.best_params, "seed": base.seed}, indent=2) + "\n")
    _pictures(study, folder, importances=len(complete) >= 4)
    console.print(f"best of {len(complete)} complete trials: number {study.best_trial.number}, validation AUROC "
                  f"{study.best_value:.4f}; settings in {folder / BEST_FILE}")  # fmt: skip


def _pictures(study: optuna.Study, folder: Path, *, importances: bool) -> None:
    import warnings

    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.figure import Figure
    from optuna.visualization import matplotlib as pictures

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna marks its matplotlib pictures as experimental
        axes = {"history": pictures.plot_optimization_history(study, target_name="validation AUROC")}
        if importances:
            axes["importances"] = pictures.plot_param_importances(study)
        for name, drawn in axes.items():
            figure = cast(Figure, drawn.figure)
            figure.set_size_inches(7.5, 4.2)
            figure.tight_layout()
            figure.savefig(folder / f"{name}.png", dpi=130)
            plt.close(figure)


if __name__ == "__main__":
    main()
