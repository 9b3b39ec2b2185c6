"""One training run in one folder: checkpoints, logs, resuming."""

import pickle
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from omegaconf import DictConfig, OmegaConf

from ophio.errors import UserError
from ophio.lightning.callbacks import ExponentialAverage, RandomState

CHECKPOINT = "last.ckpt"


class SavedConfig(Callback):
    """Keeps the model's configuration in the checkpoint, and refuses a checkpoint made with another."""

    def __init__(self, model: dict[str, Any]):
        self.model = model

    def on_save_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        checkpoint["model_config"] = self.model


def check_resumable(path: Path, model: dict[str, Any]) -> None:
    """Raises UserError where the checkpoint is damaged or of another architecture."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["model_config"]
    except (RuntimeError, KeyError, EOFError, OSError, pickle.UnpicklingError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path}: no usable checkpoint ({reason}); remove it to start anew, or set output=") from None
    odd = sorted(key for key in saved | model if saved.get(key) != model.get(key))
    if odd:
        changes = ", ".join(f"model.{key} {saved.get(key)} there, {model.get(key)} now" for key in odd)
        raise UserError(f"{path}: made by another architecture ({changes}); use the same, or another output=")


def fit(
    module: lightning.LightningModule,
    data: lightning.LightningDataModule,
    trainer: DictConfig,
    output: Path,
    model: DictConfig,
    ema_decay: float,
    checkpoint_every: int,
) -> bool:
    """Trains to the end, from `output`/last.ckpt if there is one. False when `max_time` ended it before.

    After a finished run the module holds the averaged weights.
    """
    architecture = OmegaConf.to_container(model, resolve=True)
    checkpoint = output / CHECKPOINT
    if checkpoint.exists():
        check_resumable(checkpoint, architecture)
        rank_zero_info(f"{checkpoint}: going on from there")
    output.mkdir(parents=True, exist_ok=True)
    callbacks = [
        ExponentialAverage(ema_decay),
        RandomState(),
        SavedConfig(architecture),
        ModelCheckpoint(
            output, "last", every_n_train_steps=checkpoint_every, save_on_train_epoch_end=False, enable_version_counter=False
        ),
    ]
    runner: lightning.Trainer = instantiate(trainer, callbacks=callbacks, logger=_loggers(output), default_root_dir=output)
    runner.fit(module, data, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
    runner.save_checkpoint(checkpoint)
    return runner.global_step >= runner.max_steps


def _loggers(output: Path) -> list[Logger]:
    """A table in metrics.csv; TensorBoard files too where it is installed."""
    loggers: list[Logger] = [CSVLogger(output, name="", version="logs")]
    try:
        loggers.append(TensorBoardLogger(output, name="", version="logs"))
    except ModuleNotFoundError:
        pass
    return loggers
