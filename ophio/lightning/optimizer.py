"""Muon for the matrices, AdamW for everything else."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer


def _loss_of(closure: Callable[[], Any] | None) -> Any:
    """What the closure of a step computes, with gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class BatchedMuon(Muon):
    """torch's Muon, but for all matrices of a shape together, and orthogonalised in float32 rather than in bfloat16."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _loss_of(closure)
        for group in self.param_groups:
            weights, gradients, momenta = [], [], []
            self._init_group(group, weights, gradients, momenta)
            if weights:
                self._update(group, weights, gradients, momenta)
        return loss

    def _update(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], momenta: list[Tensor]
    ) -> None:
        lr, momentum = float(group["lr"]), group["momentum"]
        torch._foreach_lerp_(momenta, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, momenta, momentum)  # Nesterov's
        torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        shapes = defaultdict(list)
        for weight, update in zip(weights, updates, strict=True):
            pair = (weight, update) if weight.shape[0] <= weight.shape[1] else (weight.T, update.T)
            shapes[pair[0].shape].append(pair)
        for (_, longer), pairs in shapes.items():
            batch, update = zip(*pairs, strict=True)
            steps = orthogonalise(torch.stack(update), group["ns_coefficients"], group["ns_steps"])
            # the RMS of AdamW's updates (Liu et al. 2025, arXiv:2502.16982)
            torch._foreach_add_(list(batch), list(steps), alpha=-lr * 0.2 * longer**0.5)


def orthogonalise(
    matrices: Float[Tensor, "batch n m"], coefficients: tuple[float, float, float], steps: int
) -> Float[Tensor, "batch n m"]:
    """Singular values to about 1 by Newton-Schulz steps X <- (a + b G + c G^2) X with G = X X^T (Jordan et al. 2024).

    As every factor is a polynomial of the first G, only n x n matrices are iterated; n should be the shorter side.
    """
    a, b, c = coefficients
    matrices = matrices / torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=1e-7)
    gram = matrices @ matrices.mT
    total = factor = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    for step in range(steps):
        gram = factor @ gram @ factor if step else gram
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        total = factor @ total if step else factor
    return total @ matrices


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
            BatchedMuon(matrices, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"),
            AdamW(others, lr=lr, weight_decay=weight_decay, betas=tuple(betas)),
        ]
        super().__init__(params, {"lr": lr})
        self._link()

    def _link(self) -> None:
        """The parts' own groups, so that a learning-rate schedule reaches them."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _loss_of(closure)
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._link()
