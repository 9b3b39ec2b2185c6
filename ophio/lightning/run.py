"""One training run in one folder: checkpoints, logs, resuming."""

import logging
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from omegaconf import DictConfig

from ophio import __version__
from ophio.errors import UserError
from ophio.hardware import device_name
from ophio.lightning.callbacks import ExponentialAverage, Progress, StepRandomness
from ophio.lightning.checkpoint import LastCheckpoint, Stopped, WholeFile, check_resumable, max_seconds

CHECKPOINT = "last.ckpt"


def fit(
    module: LightningModule,
    data: LightningDataModule,
    trainer: DictConfig,
    output: Path,
    config: Mapping[str, Any],
    ema_decay: float,
    checkpoint_every: int,
) -> dict[str, Any] | None:
    """Trains to the end, from `output`/last.ckpt if there is one. Then `module` holds the averaged weights.

    Args:
        trainer: for `lightning.Trainer`, instantiated here; `max_time` counts from every start anew.
        config: all options of the run in plain containers, with `model`, `optimizer` and `seed`; kept in the checkpoint.

    Returns what the model's card should tell of the run: validation, time, hardware, versions, config. None where
    nothing is to be written: `max_time` ended the run before, or this is not the first of several processes.
    Raises UserError before anything is written when checkpoint, corpus or options do not serve; KeyboardInterrupt, its
    state saved, after Ctrl-C or SIGTERM.
    """
    _quiet_lightning()
    checkpoint = output / CHECKPOINT
    resumes = checkpoint.exists()
    if resumes:
        check_resumable(checkpoint, module, config)
    average = ExponentialAverage(ema_decay)
    last = LastCheckpoint(checkpoint, config, checkpoint_every, max_seconds(trainer.max_time))
    callbacks = [average, StepRandomness(config["seed"]), Progress(), last]
    runner = _trainer(trainer, callbacks, output)
    data.train_dataloader()
    validates = runner.limit_val_batches != 0
    if validates:
        data.val_dataloader()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output={output}: not a folder that can be written ({error.strerror})") from None
    _announce(runner, module, output, resumes)
    try:
        runner.fit(module, data, ckpt_path=checkpoint if resumes else None, weights_only=True)
        average.copy_to(module)
        metrics = runner.validate(module, data, verbose=False)[0] if validates else {}
    except Stopped as stopped:
        return _stop(str(stopped), interrupted=last.signal is not None, first=runner.is_global_zero)
    except torch.linalg.LinAlgError as error:  # from the first operation that refuses numbers too large or not finite
        raise last.diverged(str(error).split(":")[0]) from None
    except SystemExit:  # how Lightning passes on a KeyboardInterrupt
        raise KeyboardInterrupt(f"{output} holds the state of the last checkpoint") from None
    facts = {
        "validation": {key.removeprefix("val/"): _finite(value) for key, value in metrics.items()},
        "train_seconds": _finite(last.train_seconds),
        "hardware": f"{runner.world_size} x {device_name(runner.strategy.root_device)}",
        "versions": {"ophio": __version__, "torch": torch.__version__},
        "config": dict(config),
    }
    return facts if runner.is_global_zero else None


def _trainer(options: DictConfig, callbacks: list, output: Path) -> Trainer:
    try:
        runner = instantiate(options, _partial_=True)(
            max_time=None,
            callbacks=callbacks,
            plugins=[WholeFile()],
            logger=_loggers(output),
            default_root_dir=output,
            enable_progress_bar=False,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"trainer: {error}") from None
    if runner.max_steps < 1:
        raise UserError(f"total_steps={runner.max_steps}: give a number of steps")
    return runner


def _loggers(output: Path) -> list[Logger]:
    """logs/version_N/metrics.csv, N counting the starts of the run; TensorBoard files too where it is installed."""
    table = CSVLogger(output, name="logs", flush_logs_every_n_steps=1)
    try:
        return [table, TensorBoardLogger(output, name="logs", version=table.version)]
    except ModuleNotFoundError:
        return [table]


def _announce(runner: Trainer, module: LightningModule, output: Path, resumes: bool) -> None:
    if runner.is_global_zero:
        size = sum(parameter.numel() for parameter in module.parameters()) / 1e6
        device = f"{runner.world_size} x {device_name(runner.strategy.root_device)}"
        verb = "going on in" if resumes else "writing to"
        what = f"{size:.2f} M parameters, {runner.max_steps} steps on {device}"
        print(f"ophio {__version__}: {what}, {verb} {output}", flush=True)


def _stop(message: str, interrupted: bool, first: bool) -> None:
    # other processes leave quietly: a failure of theirs would kill the first
    if interrupted and first:
        raise KeyboardInterrupt(message)
    if first:
        print(f"max_time: {message}", flush=True)


def _quiet_lightning() -> None:
    """Keeps adverts, and remarks that call for no action, off the console."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
