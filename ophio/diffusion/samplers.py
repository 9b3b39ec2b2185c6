"""Samplers: from noise to Clouds. Each is one function named for its algorithm.

All take

    denoise(x, sigma) -> Cloud   estimate of the clean Cloud; sigma is a number
    x                            noise of standard deviation sigmas[0]
    sigmas [steps + 1]           falling noise levels, the last one 0
    draw() -> Cloud              fresh standard noise, centred

`noise_scale` below 1 makes the random steps smaller than the theory wants: samples of higher quality and less diversity.
"""

import math
from collections.abc import Callable
from inspect import signature
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from ophio.cloud import Cloud

Denoise = Callable[[Cloud, float], Cloud]
Draw = Callable[[], Cloud]


def ddpm(denoise: Denoise, x: Cloud, sigmas: Float[Tensor, "levels"], draw: Draw, noise_scale: float = 1.0) -> Cloud:
    """Ancestral sampling (Ho et al. 2020, arXiv:2006.11239, algorithm 2).

    Every step draws from the posterior q(x_next | x, denoised).
    """
    for sigma, following in pairwise(sigmas.tolist()):
        denoised = denoise(x, sigma)
        kept = (following / sigma) ** 2
        x = denoised + (x - denoised) * kept
        x = x + draw() * (noise_scale * following * math.sqrt(1 - kept))
    return x


def dpm_solver(
    denoise: Denoise,
    x: Cloud,
    sigmas: Float[Tensor, "levels"],
    draw: Draw,
    noise_scale: float = 1.0,
    tau2: float = 1.0,
    late: float = 0.0,
    late_noise_scale: float = 1.0,
    late_tau2: float = 1.0,
) -> Cloud:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 4): ancestral sampling of second order.

    A step goes to where the last two estimates point, extrapolated in log sigma to the middle of the step.

    `tau2` is how much fresh noise a step puts in, and how much more it takes out for that: 0 none, 1 as the algorithm
    has it, above 1 more (tau squared of Xue et al. 2023, arXiv:2309.05019). For exact estimates all lead to the same
    distribution; fresh noise undoes part of the errors of estimates that are not.

    Steps from sigma `late` or below multiply `noise_scale` by `late_noise_scale`, and `late_tau2` takes the place of
    `tau2`: a fold may be chosen at a higher temperature than it is then worked out at.
    """
    previous, last_step = None, math.inf
    for sigma, following in pairwise(sigmas.tolist()):
        scale, fresh = (noise_scale * late_noise_scale, late_tau2) if sigma <= late else (noise_scale, tau2)
        denoised = target = denoise(x, sigma)
        step = math.log(sigma / following) if following else 0.0  # the last one ends in the estimate itself
        if previous is not None:
            target = denoised + (denoised - previous) * (0.5 * step / last_step)
        previous, last_step = denoised, step
        kept = (following / sigma) ** (1 + fresh)
        x = target + (x - target) * kept
        x = x + draw() * (scale * following * math.sqrt(1 - (following / sigma) ** (2 * fresh)))
    return x


def ddim(
    denoise: Denoise,
    x: Cloud,
    sigmas: Float[Tensor, "levels"],
    draw: Draw,
    noise_scale: float = 1.0,
    eta: float = 0.0,
) -> Cloud:
    """Song et al. 2021 (arXiv:2010.02502, equation 12): deterministic for eta 0, ancestral sampling for eta 1."""
    for sigma, following in pairwise(sigmas.tolist()):
        denoised = denoise(x, sigma)
        fresh = eta * following * math.sqrt(1 - (following / sigma) ** 2)
        x = denoised + (x - denoised) * (math.sqrt(following**2 - fresh**2) / sigma)
        if eta:
            x = x + draw() * (noise_scale * fresh)
    return x


def heun(
    denoise: Denoise,
    x: Cloud,
    sigmas: Float[Tensor, "levels"],
    draw: Draw,
    noise_scale: float = 1.0,
    churn: float = 0.0,
    churn_min: float = 0.05,
    churn_max: float = 10.0,
) -> Cloud:
    """Second-order steps (Karras et al. 2022, arXiv:2206.00364, algorithm 2).

    Evaluates `denoise` twice a step, once in the last.

    `churn` raises the noise before steps between `churn_min` and `churn_max`, by that over the number of steps.
    """
    rise = min(churn / (len(sigmas) - 1), math.sqrt(2) - 1)
    for sigma, following in pairwise(sigmas.tolist()):
        if rise and churn_min <= sigma <= churn_max:
            raised = sigma * (1 + rise)
            x = x + draw() * (noise_scale * math.sqrt(raised**2 - sigma**2))
            sigma = raised
        slope = (x - denoise(x, sigma)) * (1 / sigma)
        euler = x + slope * (following - sigma)
        if following == 0:
            return euler
        slope = (slope + (euler - denoise(euler, following)) * (1 / following)) * 0.5
        x = x + slope * (following - sigma)
    return x


def euler_flow(
    denoise: Denoise, x: Cloud, sigmas: Float[Tensor, "levels"], draw: Draw, noise_scale: float = 1.0
) -> Cloud:
    """Euler steps along the flow x_t = (1 - t) x_0 + t noise, t = sigma / (1 + sigma), with velocity (x_t - x_0) / t.

    The flow is that of Lipman et al. 2023 (arXiv:2210.02747). Deterministic: `draw` and `noise_scale` are there for the
    common signature.
    """
    times = sigmas / (1 + sigmas)
    x = x * (1 - float(times[0]))
    for (t, following), sigma in zip(pairwise(times.tolist()), sigmas.tolist()):
        denoised = denoise(x * (1 / (1 - t)), sigma)
        x = x + (x - denoised) * ((following - t) / t)
    return x


SAMPLERS = {"ddpm": ddpm, "dpm_solver": dpm_solver, "ddim": ddim, "heun": heun, "euler_flow": euler_flow}


def options_of(sampler: str) -> list[str]:
    """Arguments of a sampler beyond those that all share, which are those of `ddpm`."""
    shared = signature(ddpm).parameters
    return [name for name in signature(SAMPLERS[sampler]).parameters if name not in shared]
