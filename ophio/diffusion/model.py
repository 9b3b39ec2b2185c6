"""Latent diffusion: denoiser, process and units together, and sampling with them."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ophio.cloud import Cloud
from ophio.diffusion.conditions import Conditions
from ophio.diffusion.denoiser import Denoiser
from ophio.diffusion.process import Process, centred_noise
from ophio.diffusion.samplers import SAMPLERS
from ophio.diffusion.standardize import Standardizer
from ophio.irreps import dim


class LatentDiffusion(nn.Module):
    """A generative model of an autoencoder's latent Clouds.

        diffusion = load("mini_diffusion")                # ophio.pretrained
        cloud = diffusion.sample(mask, Conditions.of_lengths(torch.tensor([64, 80])), generators)

    `ophio.sampling` goes from there to proteins.

    Args:
        denoiser: network on standardised Clouds.
        process: noise levels, prediction, loss.
    """

    def __init__(self, denoiser: Denoiser, process: Process):
        super().__init__()
        self.denoiser, self.process = denoiser, process
        self.standardizer = Standardizer(denoiser.latent_lmax, denoiser.latent_channels)

    def set_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        """Units of the latents, from `standardize.latent_statistics`."""
        self.standardizer.set_statistics(statistics, self.process.position_spread)

    def denoise(
        self,
        noisy: Cloud,
        sigma: Float[Tensor, "batch"],
        conditions: Conditions,
        previous: Cloud | None = None,
    ) -> Cloud:
        """The estimate of the clean Cloud; all Clouds standardised. `previous`: an earlier estimate."""
        if previous is not None:
            previous = self.process.network_input(previous, torch.zeros_like(sigma))
        entering = self.process.network_input(noisy, sigma)
        output = self.denoiser(entering, sigma.log() / 4, conditions, previous)
        return self.process.denoised(output, noisy, sigma)

    def loss(self, latent: Cloud, conditions: Conditions, sigma: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """Denoising loss of each latent (Å, as encoded) at a noise level; in training half of them see an estimate."""
        clean = self.standardizer(latent)
        noisy = self.process.noisy(clean, centred_noise(clean), sigma)
        previous = None
        if not self.training or torch.rand(()) < 0.5:
            with torch.no_grad():
                previous = self.denoise(noisy, sigma, conditions)
        return self.process.loss(self.denoise(noisy, sigma, conditions, previous), clean, sigma)

    @torch.no_grad()
    def sample(
        self,
        mask: Bool[Tensor, "batch n"],
        conditions: Conditions,
        generators: list[torch.Generator],
        sampler: str = "heun",
        steps: int = 20,
        noise_scale: float = 1.0,
        guidance: float = 1.0,
        options: Mapping[str, Any] | None = None,
        start: Cloud | None = None,
        start_sigma: float = math.inf,
    ) -> Cloud:
        """Latents (Å, as an encoder would give them) for the real nodes of `mask`.

        Args:
            generators: one for each sample, on the CPU.
            sampler: a name in `samplers.SAMPLERS`; `options` are its own further arguments.
            noise_scale: of the first noise and of whatever the sampler adds.
            guidance: how far to follow the asked content beyond the conditional estimate's 1 (Ho & Salimans 2022,
                arXiv:2207.12598).
            start: latents to start from, noised to the first level of the schedule that is at most `start_sigma`.
        """
        parameter = next(self.parameters())
        blank = Cloud(
            parameter.new_zeros(*mask.shape, 3),
            parameter.new_zeros(*mask.shape, dim(self.denoiser.latent_lmax), self.denoiser.latent_channels),
            mask,
        )
        sigmas = self.process.schedule.sigmas(steps)
        sigmas = sigmas[sigmas <= start_sigma]

        def draw() -> Cloud:
            return centred_noise(blank, generators)

        noisy = draw() * (float(sigmas[0]) * noise_scale)
        if start is not None:
            noisy = self.standardizer(start) + noisy
        estimate = SelfConditioned(self, conditions, guidance)
        cloud = SAMPLERS[sampler](estimate, noisy, sigmas, draw, noise_scale, **(options or {}))
        return self.standardizer.inverse(cloud.center())


class SelfConditioned:
    """The `denoise` of a sampler: hands every estimate to the next call, and guides towards the asked content."""

    def __init__(self, model: LatentDiffusion, conditions: Conditions, guidance: float):
        self.model, self.conditions, self.guidance = model, conditions, guidance
        self.previous: Cloud | None = None

    def __call__(self, noisy: Cloud, sigma: float) -> Cloud:
        level = noisy.positions.new_full((len(noisy.mask),), sigma)
        denoised = self.model.denoise(noisy, level, self.conditions, self.previous)
        if self.guidance != 1.0 and self.conditions.asks_content:
            free = self.model.denoise(noisy, level, self.conditions.without_content(), self.previous)
            denoised = free + (denoised - free) * self.guidance
        self.previous = denoised
        return denoised
