"""Muon for the matrices, AdamW for everything else."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """Muon (Jordan et al. 2024) orthogonalises the update of each weight matrix; vectors, biases, norms and matrices
    thinner than `min_width` get AdamW. What is known of the two on this model: docs/training.md.

    Args:
        lr: of both; Muon's updates are scaled to the RMS of AdamW's.
        weight_decay, betas: of AdamW; Muon shares the decay.
        momentum: of Muon.
        min_width: shorter side from which on a matrix is Muon's.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 3e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
        min_width: int = 8,
    ):
        params = list(params)
        matrices = [p for p in params if p.dim() == 2 and min(p.shape) >= min_width]
        chosen = {id(p) for p in matrices}
        others = [p for p in params if id(p) not in chosen]
        self.parts = [
            Muon(matrices, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"),
            AdamW(others, lr=lr, weight_decay=weight_decay, betas=tuple(betas)),
        ]
        super().__init__(params, {"lr": lr})
        self._link()

    def _link(self) -> None:
        """The parts' own groups, so that a learning-rate schedule reaches them."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._link()
