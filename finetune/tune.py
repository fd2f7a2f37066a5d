"""Search for better settings with Optuna; stop it at any time and call it again to go on.

    python -m finetune.tune --data chest_xray --out runs/search --trials 30
    python -m finetune.run --data chest_xray --config runs/search/best.json

Several processes, on one machine or on several that share the folder, may work on one search: start the same command
more than once. Each trial trains on the training patients and is judged by validation AUROC; poor ones are cut short.
The test part is never looked at.

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

from .settings import BALANCES, OBJECTIVES, DataSettings, TrainSettings

if TYPE_CHECKING:
    import optuna

    from finetune.data.datamodule import DataModule

STUDY = "medclip-triton"
JOURNAL_FILE, BEST_FILE = "journal.log", "best.json"


class SearchError(XrayError):
    """A search cannot be made or continued."""


_FOLDER = click.Path(path_type=Path)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__.split("\n")[0]
)
@click.option("--data", type=_FOLDER, required=True, help="What to train on, as for finetune.run.")
@click.option("--out", type=_FOLDER, default=Path("runs/search"), help="Folder of the search; made, or gone on with.")
@click.option("--cache", type=_FOLDER, default=None, help="Where decoded images are kept.  [default: OUT/../cache]")
@click.option("--trials", type=click.IntRange(1), default=30, help="Finish when so many are done, by all processes.")
@click.option("--epochs", type=click.IntRange(1), default=4, help="Of each trial, at most.")
@click.option("--head-epochs", type=click.IntRange(0), default=40, help="Of each trial's head stage (0 = off).")
@click.option(
    "--val-fraction", type=click.FloatRange(0.02, 0.5), default=0.15, help="Share of the patients to judge on."
)
@click.option("--splits", type=_FOLDER, default=None, help="splits.csv whose validation part judges.")
@click.option("--balance", type=click.Choice(BALANCES), default="sampler", help="As for finetune.run.")
@click.option(
    "--degraded-validation",
    type=click.FloatRange(0, 3),
    default=0.0,
    help="As for finetune.run; fine-tuning alone judges.",
)
@click.option("--objective", type=click.Choice(["any", *OBJECTIVES]), default="any", help="any = search for it too.")
@click.option("--seed", type=int, default=0, help="Of split and weights; the same for all trials.")
def main(
    data: Path,
    out: Path,
    cache: Path | None,
    trials: int,
    epochs: int,
    head_epochs: int,
    val_fraction: float,
    splits: Path | None,
    balance: str,
    degraded_validation: float,
    objective: str,
    seed: int,
) -> None:
    """Command line; see the module's text."""
    from finetune.data.datamodule import prepare_data

    with plain_errors(), signals_interrupt():
        study = open_study(out)
        judged_by = {"data": str(data.resolve()), "epochs": epochs, "head_epochs": head_epochs,
                     "val_fraction": val_fraction, "splits": splits and str(splits.resolve()), "balance": balance,
                     "degraded_validation": degraded_validation, "seed": seed}  # fmt: skip
        _same_question(study, judged_by, out)
        base = TrainSettings(
            epochs=epochs,
            head_epochs=head_epochs,
            patience=epochs,
            balance=balance,
            seed=seed,
            degraded_validation=degraded_validation,
        )
        datamodule = prepare_data(
            DataSettings(data, cache or out.parent / "cache", val_fraction, seed=seed, splits=splits)
        )
        try:
            search(study, datamodule, base, trials=trials, objective=objective)
        except KeyboardInterrupt:
            click.echo("interrupted; the same command goes on")
        write_summary(study, base, out)
        click.echo(RESEARCH_USE)


def open_study(folder: Path) -> optuna.Study:
    """Make or open the search in a folder; gives back to the queue what a killed process was working on."""
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
    """Whether a trial's process is gone; one on another machine is taken to be alive."""
    if worker.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(worker["process"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _same_question(study: optuna.Study, judged_by: dict[str, Any], folder: Path) -> None:
    """Trials of one search are compared with each other, so all must be judged alike."""
    before = study.user_attrs.get("judged_by")
    if before is None:
        study.set_user_attr("judged_by", judged_by)
    elif before != judged_by:
        changed = [f"{name} was {before.get(name)}" for name, value in judged_by.items() if before.get(name) != value]
        raise SearchError(
            f"this search was started differently: {', '.join(changed)}",
            source=str(folder),
            remedy="start another one with --out",
        )


def suggest(trial: optuna.Trial, objective: str) -> dict[str, Any]:
    """Settings of one trial, by the names of `TrainSettings` and of `ModelConfig`'s dropout."""
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
        "objective": trial.suggest_categorical("objective", OBJECTIVES) if objective == "any" else objective,
    }


def search(study: optuna.Study, datamodule: DataModule, base: TrainSettings, *, trials: int, objective: str) -> None:
    """Run trials until so many are complete or cut short, by this and all other processes."""
    from dataclasses import asdict, replace

    import optuna
    from lightning.pytorch.callbacks import Callback
    from optuna.trial import TrialState

    from finetune.models.classifier import ModelConfig
    from finetune.training.experiment import Experiment

    class Report(Callback):
        """Tell Optuna about each epoch, and stop where it says so."""

        def __init__(self, trial: optuna.Trial) -> None:
            self.trial = trial

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.trial.report(float(trainer.callback_metrics["val_auroc"]), trainer.current_epoch)
            if self.trial.should_prune():
                raise optuna.TrialPruned

    # Every trial's tower starts from the same weights, so the features of the head stage are the same too.
    features = {name: Experiment(datamodule, ModelConfig(), base).features_of(name) for name in ("train", "val")}

    def train(trial: optuna.Trial) -> float:
        trial.set_user_attr("host", socket.gethostname())
        trial.set_user_attr("process", os.getpid())
        settings = suggest(trial, objective)
        started = time.monotonic()
        dropout = settings.pop("dropout")
        experiment = Experiment(datamodule, ModelConfig(dropout=dropout), replace(base, **settings))
        experiment.features = dict(features)
        experiment.fit(callbacks=[Report(trial)])
        trial.set_user_attr("seconds", round(time.monotonic() - started, 1))
        # The head stage is judged on radiographs as they are, which is easier than degraded ones.
        return experiment.aurocs["fine_tuned"] if base.degraded_validation else max(experiment.aurocs.values())

    def tell(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        value = f"{trial.value:.4f}" if trial.value is not None else "-"
        console.print(f"trial {trial.number}: {trial.state.name.lower()}, validation AUROC {value}")

    if not study.trials:
        defaults = {**asdict(base), "dropout": ModelConfig().dropout}
        study.enqueue_trial({name: defaults[name] for name in suggest(_Names(), "any")})  # type: ignore[arg-type]
    done = (TrialState.COMPLETE, TrialState.PRUNED)
    while len(study.get_trials(deepcopy=False, states=done)) < trials:
        study.optimize(train, n_trials=1, callbacks=[tell])


class _Names:
    """Stands in for a trial where only the names of what is searched are wanted."""

    def __getattr__(self, _: str) -> Any:
        return lambda name, *args, **options: None


def write_summary(study: optuna.Study, base: TrainSettings, folder: Path) -> None:
    """best.json for `finetune.run --config`, trials.csv, and Optuna's pictures of history and importances."""
    from optuna.trial import TrialState

    complete = study.get_trials(states=[TrialState.COMPLETE])
    if not complete:
        console.print("no trial is complete yet")
        return
    study.trials_dataframe(attrs=("number", "state", "value", "params", "user_attrs")).to_csv(
        folder / "trials.csv", index=False
    )
    staged = folder / f".{BEST_FILE}"
    staged.write_text(json.dumps({**study.best_params, "seed": base.seed}, indent=2) + "\n")
    staged.replace(folder / BEST_FILE)
    _pictures(study, folder, importances=len(complete) >= 4)
    console.print(f"best of {len(complete)} complete trials: number {study.best_trial.number}, validation AUROC "
                  f"{study.best_value:.4f}; settings in {folder / BEST_FILE}")  # fmt: skip


def _pictures(study: optuna.Study, folder: Path, *, importances: bool) -> None:
    import warnings

    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from optuna.visualization import matplotlib as pictures

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna marks its matplotlib pictures as experimental
        axes = {"history": pictures.plot_optimization_history(study, target_name="validation AUROC")}
        if importances:
            axes["importances"] = pictures.plot_param_importances(study)
        for name, drawn in axes.items():
            figure = cast(plt.Figure, drawn.figure)
            figure.set_size_inches(7.5, 4.2)
            figure.tight_layout()
            figure.savefig(folder / f"{name}.png", dpi=130)
            plt.close(figure)


if __name__ == "__main__":
    main()
