"""The one place that relates noise level, clean, noisy and what the network is asked to predict."""

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from ophio.cloud import Cloud
from ophio.diffusion.schedules import Schedule

PREDICTIONS = ("x0", "epsilon", "v")
WEIGHTINGS = ("uniform", "epsilon", "min_snr", "v")
MIN_SNR = 5.0


class Process:
    """noisy = clean + sigma noise on standardised Clouds, and the way back from a network's output.

    Noise is isotropic in every channel and centred in the positions, hence equivariant. Features have unit variance and
    positions a standard deviation of `position_spread`: with more than 1, noise blurs features before positions.

    Args:
        schedule: noise levels of training and sampling.
        prediction: what the network gives: the clean Cloud, the noise, or their variance-preserving mix "v", which for
            noise that is added is EDM's preconditioning (Salimans & Ho 2022, arXiv:2202.00512; Karras et al. 2022,
            arXiv:2206.00364).
        weighting: of the squared error of the clean Cloud: "uniform"; "epsilon" and "v", as if the error of those were
            weighted uniformly (DDPM and EDM); "min_snr", min(SNR, 5) (Hang et al. 2023, arXiv:2303.09556).
        position_spread: standard deviation of standardised positions.
        position_weight: of a position's squared error against a feature's.

    Raises ValueError for another prediction or weighting.
    """

    def __init__(
        self,
        schedule: Schedule,
        prediction: str = "v",
        weighting: str = "v",
        position_spread: float = 2.0,
        position_weight: float = 4.0,
    ):
        for value, allowed in ((prediction, PREDICTIONS), (weighting, WEIGHTINGS)):
            if value not in allowed:
                raise ValueError(f"{value!r}: not one of {', '.join(allowed)}")
        self.schedule, self.prediction, self.weighting = schedule, prediction, weighting
        self.position_spread, self.position_weight = position_spread, position_weight

    def noisy(self, clean: Cloud, noise: Cloud, sigma: Float[Tensor, "batch"]) -> Cloud:
        """`noise`: of unit variance, as `centred_noise` draws it; `sigma`: its standard deviation, one for each cloud."""
        return clean + noise * sigma

    def network_input(self, noisy: Cloud, sigma: Float[Tensor, "batch"]) -> Cloud:
        """Unit variance at every noise level."""
        factors = [(sigma.square() + spread**2).rsqrt() for spread in (self.position_spread, 1.0)]
        return _scale(noisy, *factors)

    def target(self, clean: Cloud, noisy: Cloud, sigma: Float[Tensor, "batch"]) -> Cloud:
        """The network's output for which `denoised` gives `clean`."""
        (skip_p, out_p), (skip_f, out_f) = (self._coefficients(sigma, s) for s in (self.position_spread, 1.0))
        return _scale(clean - _scale(noisy, skip_p, skip_f), 1 / out_p, 1 / out_f)

    def denoised(self, output: Cloud, noisy: Cloud, sigma: Float[Tensor, "batch"]) -> Cloud:
        """The estimate of the clean Cloud from what the network gave for `noisy`."""
        (skip_p, out_p), (skip_f, out_f) = (self._coefficients(sigma, s) for s in (self.position_spread, 1.0))
        return _scale(noisy, skip_p, skip_f) + _scale(output, out_p, out_f)

    def loss(self, denoised: Cloud, clean: Cloud, sigma: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """Weighted squared error for each number of a real node; positions count `position_weight` fold."""
        real = clean.mask.to(sigma.dtype)
        error = denoised - clean
        of_positions = (error.positions.square().sum(-1) * real).sum(-1) * self._weight(sigma, self.position_spread)
        of_features = (error.features.square().sum((-1, -2)) * real).sum(-1) * self._weight(sigma, 1.0)
        numbers = 3 * self.position_weight + prod(clean.features.shape[-2:])
        return (self.position_weight * of_positions + of_features) / (numbers * real.sum(-1))

    def _coefficients(self, sigma: Tensor, spread: float) -> tuple[Tensor, Tensor]:
        """Of the noisy Cloud and of the network's output in the denoised one. `spread`: of the clean data."""
        variance = sigma.square() + spread**2
        match self.prediction:
            case "x0":
                return torch.zeros_like(sigma), torch.full_like(sigma, spread)
            case "epsilon":
                return torch.ones_like(sigma), -sigma
            case _:  # v
                return spread**2 / variance, -sigma * spread * variance.rsqrt()

    def _weight(self, sigma: Tensor, spread: float) -> Tensor:
        inverse_snr = (sigma / spread).square()
        match self.weighting:
            case "uniform":
                weight = torch.ones_like(sigma)
            case "epsilon":
                weight = 1 / inverse_snr
            case "min_snr":
                weight = (1 / inverse_snr).clamp(max=MIN_SNR)
            case _:  # v
                weight = 1 + 1 / inverse_snr
        return weight / spread**2


def centred_noise(like: Cloud, generators: list[torch.Generator] | None = None) -> Cloud:
    """Standard normal features and centred positions for the real nodes of a batch, 0 for the others.

    `generators`: one for each cloud of the batch, on the CPU, so that a sample does not depend on its companions, on
    padding, or on the device; None: the global random stream.
    """
    if generators is None:
        noise = Cloud(torch.randn_like(like.positions), torch.randn_like(like.features), like.mask)
        return noise.center()
    positions, features = torch.zeros_like(like.positions), torch.zeros_like(like.features)
    width = prod(like.features.shape[-2:])
    for k, generator in enumerate(generators):
        real = like.mask[k]
        numbers = torch.randn(int(real.sum()), 3 + width, generator=generator, dtype=torch.float32).to(positions)
        positions[k, real] = numbers[:, :3]
        features[k, real] = numbers[:, 3:].view(-1, *like.features.shape[-2:])
    return Cloud(positions, features, like.mask).center()


def _scale(cloud: Cloud, positions: Float[Tensor, "batch"], features: Float[Tensor, "batch"]) -> Cloud:
    return Cloud(cloud.positions * positions[:, None, None], cloud.features * features[:, None, None, None], cloud.mask)
