"""Diffusion over latent Clouds."""

from ophio.diffusion.conditions import DESIGNED, Conditions
from ophio.diffusion.denoiser import Denoiser
from ophio.diffusion.model import LatentDiffusion
from ophio.diffusion.process import Process
from ophio.diffusion.schedules import DDPM, EDM, Flow

__all__ = ["DDPM", "DESIGNED", "EDM", "Conditions", "Denoiser", "Flow", "LatentDiffusion", "Process"]
