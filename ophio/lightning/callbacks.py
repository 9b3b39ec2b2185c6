"""Callbacks: averaged weights, random numbers that survive a resume, and progress on the console."""

import sys
import time
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor
from tqdm import tqdm

from ophio.errors import UserError


class ExponentialAverage(WeightAveraging):
    """Exponential moving average of the weights; validation and the released weights use it.

    The decay warms up, min(decay, (1 + n) / (10 + n)) after n updates, so that short runs average too. Raises UserError
    for a decay below 0, and from 1 on.
    """

    def __init__(self, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise UserError(f"ema_decay={decay}: give a number from 0 (no averaging) to below 1")

        def average(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor | int) -> None:
            count = int(num_averaged)
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + count) / (10 + count)))

        super().__init__(use_buffers=False, multi_avg_fn=average)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: the base class would replace the current weights, and the next checkpoint would keep the wrong ones."""

    def copy_to(self, module: LightningModule) -> None:
        """Gives `module` the averaged weights. Raises RuntimeError before training has begun."""
        if self._average_model is None:
            raise RuntimeError("no training has begun: there is no average yet")
        module.load_state_dict(self._average_model.module.state_dict())


class StepRandomness(Callback):
    """Every training step draws from a stream of its own, given by (seed, epoch, batch, rank).

    So a resumed run draws what it would have drawn, on any number of devices, whatever else has used the generators.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        stream = np.random.SeedSequence((self.seed, trainer.current_epoch, batch_idx, trainer.global_rank))
        torch.manual_seed(int(stream.generate_state(1, np.uint64)[0]))


class Progress(Callback):
    """Loss and last validation: a bar on a terminal, elsewhere a line every `interval` seconds and per validation."""

    def __init__(self, interval: float = 30.0):
        self.interval = interval
        self._bar: tqdm | None = None
        self._validation = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start_step, self._start_time, self._shown = trainer.global_step, time.monotonic(), -self.interval
        if sys.stderr.isatty() and trainer.is_global_zero:
            self._bar = tqdm(total=trainer.max_steps, initial=trainer.global_step, unit="step", dynamic_ncols=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic() - self._start_time
        last = trainer.global_step >= trainer.max_steps
        # reading the loss waits for the device: not at every step
        if last or now - self._shown >= (0.5 if self._bar else self.interval):
            self._shown = now
            self._show(trainer, f"loss {outputs['loss'].item():.4g}{self._validation}", now)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self._validation = "".join(f"  {name} {value:.3g}" for name, value in metrics.items())
        if trainer.state.fn == "fit" and self._bar is None:
            self._show(trainer, self._validation.strip(), time.monotonic() - self._start_time)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _show(self, trainer: Trainer, text: str, seconds: float) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)
        elif trainer.is_global_zero:
            rate = (trainer.global_step - self._start_step) / max(seconds, 1e-9)
            print(f"step {trainer.global_step}/{trainer.max_steps}  {text}  ({rate:.2f} steps/s)", flush=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
