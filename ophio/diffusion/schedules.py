"""Noise schedules: which noise levels training sees, and which ones a sampler steps through.

Every Gaussian diffusion x_t = alpha_t x_0 + s_t noise is, divided by alpha_t, the addition of noise of standard deviation
sigma = s_t / alpha_t. So sigma is the time of this package, and DDPM, EDM and flow matching are three schedules of it.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Schedule(Protocol):
    """What training and sampling need to know of noise levels."""

    def draw(self, count: int) -> Float[Tensor, "count"]:
        """Noise levels for training, from the global random stream."""
        ...

    def sigmas(self, steps: int) -> Float[Tensor, "levels"]:
        """Falling noise levels for sampling, the last one 0."""
        ...


class EDM:
    """Karras et al. 2022 (arXiv:2206.00364): log-normal levels in training, powers of 1/rho in sampling (equation 5).

    Args:
        sigma_min, sigma_max: first and last level of sampling; latents have unit variance.
        rho: the higher, the more steps at low noise.
        log_mean, log_std: of ln sigma in training.
    """

    def __init__(
        self,
        sigma_min: float = 0.01,
        sigma_max: float = 40.0,
        rho: float = 7.0,
        log_mean: float = -0.6,
        log_std: float = 1.4,
    ):
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho
        self.log_mean, self.log_std = log_mean, log_std

    def draw(self, count: int) -> Float[Tensor, "count"]:
        log_sigma = self.log_mean + self.log_std * torch.randn(count)
        return log_sigma.exp().clamp(self.sigma_min, self.sigma_max)

    def sigmas(self, steps: int) -> Float[Tensor, "levels"]:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return _ending_in_zero(torch.linspace(high, low, steps, dtype=torch.float64) ** self.rho)


class DDPM:
    """Ho et al. 2020 (arXiv:2006.11239), as in the paper: `num_levels` discrete levels, linear beta, all equally likely."""

    def __init__(self, num_levels: int = 1000, beta_first: float = 1e-4, beta_last: float = 0.02):
        betas = torch.linspace(beta_first, beta_last, num_levels, dtype=torch.float64) * (1000 / num_levels)
        kept = (1 - betas).cumprod(0)  # alpha_t^2
        self.levels = ((1 - kept) / kept).sqrt()

    def draw(self, count: int) -> Float[Tensor, "count"]:
        return self.levels[torch.randint(len(self.levels), (count,))].float()

    def sigmas(self, steps: int) -> Float[Tensor, "levels"]:
        chosen = torch.linspace(len(self.levels) - 1, 0, steps, dtype=torch.float64).round().long()
        return _ending_in_zero(self.levels[chosen])


class Flow:
    """The straight path x_t = (1 - t) x_0 + t noise of flow matching (Lipman et al. 2023, arXiv:2210.02747).

    Times are logit-normal in training (Esser et al. 2024, arXiv:2403.03206) and equally spaced in sampling.

    Args:
        t_max: where sampling starts; sigma = t / (1 - t) is infinite at 1.
        logit_mean, logit_std: of t in training; a lower mean trains more at low noise.
    """

    def __init__(self, t_max: float = 0.975, logit_mean: float = -0.4, logit_std: float = 1.2):
        self.t_max, self.logit_mean, self.logit_std = t_max, logit_mean, logit_std

    def draw(self, count: int) -> Float[Tensor, "count"]:
        # the logit of t is ln sigma
        highest = self.t_max / (1 - self.t_max)
        return (self.logit_mean + self.logit_std * torch.randn(count)).exp().clamp(max=highest)

    def sigmas(self, steps: int) -> Float[Tensor, "levels"]:
        t = torch.linspace(self.t_max, 0, steps + 1, dtype=torch.float64)
        return (t / (1 - t)).float()


def _ending_in_zero(levels: Tensor) -> Float[Tensor, "levels"]:
    return torch.cat([levels, levels.new_zeros(1)]).float()
