"""Learning-rate schedule."""

from math import cos, pi

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: Optimizer, warmup_steps: int, total_steps: int, floor: float = 0.01) -> LambdaLR:
    """Linear warm-up, then half a cosine down to `floor` times the base rate at `total_steps`.

    The cosine is that of Loshchilov & Hutter 2017 (arXiv:1608.03983), without restarts.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return floor + (1 - floor) * 0.5 * (1 + cos(pi * progress))

    return LambdaLR(optimizer, factor)
