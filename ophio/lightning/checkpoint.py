"""Checkpoints: when they are written, that they are written whole, and whether one can be resumed."""

import math
import os
import pickle
import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ophio.errors import UserError

_WEIGHTS = {"state_dict", "current_model_state", "averaging_state"}
_NEEDED = _WEIGHTS | {"model_config", "optimizer_states", "lr_schedulers", "loops"}


class Stopped(Exception):
    """Training was asked to stop before its end; its state is saved."""


class WholeFile(TorchCheckpointIO):
    """Writes beside the old checkpoint and renames, so that a file of that name is always complete.

    Raises UserError where it cannot be written.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        temporary = Path(f"{path}.tmp")
        try:
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            raise UserError(f"{path}: cannot be written ({_one_line(error)}); an earlier one is as it was") from None


class LastCheckpoint(Checkpoint):
    """Saves every `every` steps, at the end, when `max_seconds` are over, and on Ctrl-C or SIGTERM.

    Always between two steps: only there is a state from which training goes on exactly. A stop ends the fit with
    `Stopped`; a second signal does not wait for the step. Weights that are not finite raise UserError and are not saved.

    Args:
        path: of the checkpoint.
        config: all options of the run, kept in the checkpoint; `config["model"]` must not change until the end.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], every: int, max_seconds: float = math.inf):
        if every < 1:
            raise UserError(f"checkpoint_every={every}: give a number of steps")
        self.path, self.config, self.every, self.max_seconds = path, dict(config), every, max_seconds
        self.signal: int | None = None
        self._stopped: str | None = None
        self.earlier_seconds = 0.0  # of the attempts that led to the checkpoint that was loaded
        self._start: float | None = None
        self._step = 0

    @property
    def train_seconds(self) -> float:
        """Wall-clock time behind the present weights, over all attempts; NaN where a checkpoint does not tell."""
        return self.earlier_seconds + self._this_attempt()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start, self._step = time.monotonic(), trainer.global_step
        for number in (signal.SIGINT, signal.SIGTERM):  # Lightning puts the former handlers back
            signal.signal(number, self._request_stop)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:  # gradients are still being accumulated
            return
        self._step = trainer.global_step
        finished = self._step >= trainer.max_steps
        stop = self.signal is not None or self._this_attempt() > self.max_seconds
        stop = trainer.strategy.reduce_boolean_decision(stop, all=False) and not finished
        if stop or finished or self._step % self.every == 0:
            odd = [name for name, weight in pl_module.named_parameters() if not weight.isfinite().all()]
            if odd:
                raise self.diverged(f"weights are not finite ({odd[0]})")
            trainer.save_checkpoint(self.path)
        if stop:
            saved = f"step {self._step} of {trainer.max_steps} is in {self.path}"
            self._stopped = f"{saved}; the same command goes on from there"

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._stopped:  # only now, so that the step has been logged
            raise Stopped(self._stopped)

    def diverged(self, reason: str) -> UserError:
        """The error to raise, which says what state is left."""
        kept = f"{self.path} holds an earlier state" if self.path.exists() else "no checkpoint was written yet"
        return UserError(f"after step {self._step}: {reason}: training has diverged; {kept}; lower optimizer.lr")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"], checkpoint["model_config"] = self.config, self.config["model"]
        checkpoint["train_seconds"] = self.train_seconds

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.earlier_seconds = checkpoint.get("train_seconds", math.nan)

    def _this_attempt(self) -> float:
        return 0.0 if self._start is None else time.monotonic() - self._start

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.default_int_handler)


def check_resumable(path: Path, module: LightningModule, config: Mapping[str, Any]) -> None:
    """Raises UserError where the checkpoint is damaged, or of another model or optimiser than `config` says.

    Executes nothing from the file. The other options may differ: what they say now holds.
    """
    advice = "remove it to start anew, or give another output="
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        missing = sorted(_NEEDED - saved.keys())
    except (RuntimeError, EOFError, OSError, AttributeError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: no usable checkpoint ({_one_line(error)}); {advice}") from None
    if missing:
        raise UserError(f"{path}: no checkpoint of a training run (no {', '.join(missing)}); {advice}")
    there = {"optimizer": saved.get("config", config)["optimizer"], "model": saved["model_config"]}
    changes = [
        f"{part}.{key} {options[key]} there, {config[part][key]} now"
        for part, options in there.items()
        for key in sorted(options.keys() & config[part].keys())
        if options[key] != config[part][key]
    ]
    if changes:
        differences = ", ".join(changes)
        raise UserError(
            f"{path}: made with another model or optimizer ({differences}): use the same, or another output="
        )
    shapes, expected = ({k: v.shape for k, v in s.items()} for s in (saved["current_model_state"], module.state_dict()))
    if shapes != expected:
        raise UserError(f"{path}: made by a version of ophio whose weights have other names or shapes; {advice}")


def max_seconds(duration: str | None) -> float:
    """Seconds of "DD:HH:MM:SS"; infinity for None. Raises UserError for anything else."""
    if duration is None:
        return math.inf
    if not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(duration)):
        raise UserError(f"trainer.max_time={duration}: expected DD:HH:MM:SS, for example '00:01:30:00'")
    days, hours, minutes, seconds = map(int, duration.split(":"))
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__
