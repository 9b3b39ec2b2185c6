"""Callbacks: averaged weights, and what an exact resume needs beside the weights."""

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor


class ExponentialAverage(WeightAveraging):
    """Exponential moving average of the weights; validation and the released weights use it.

    The decay warms up, min(decay, (1 + n) / (10 + n)) after n updates, so that short runs average too.
    """

    def __init__(self, decay: float = 0.999):
        def average(averaged: Tensor, current: Tensor, num_averaged: Tensor | int) -> Tensor:
            count = int(num_averaged)
            return averaged.lerp(current.to(averaged), 1 - min(decay, (1 + count) / (10 + count)))

        super().__init__(use_buffers=False, avg_fn=average)


class RandomState(Callback):
    """Keeps the state of all random number generators in the checkpoint: a resumed run draws what it would have drawn."""

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        state = {"torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        checkpoint["random_state"] = state

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._state = checkpoint["random_state"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # last moment before the first step: setting up validation may have drawn numbers
        state = getattr(self, "_state", None)
        if state is not None:
            torch.set_rng_state(state["torch"].cpu())
            if "cuda" in state and torch.cuda.is_available():
                torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
