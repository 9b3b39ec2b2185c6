"""How well structures fold and how common their folds are, told from what a denoiser sees in them.

To fold, or even to score, a structure takes seconds; a look of the denoiser at its noised latent takes milliseconds. A
linear map of the invariants of what it sees, fitted to some hundreds of structures with measured energies, tells which
of the others are worth it.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ophio.autoencoder import Autoencoder
from ophio.cloud import Cloud
from ophio.diffusion import DESIGNED, Conditions, LatentDiffusion
from ophio.diffusion.process import centred_noise
from ophio.generation import BANDED
from ophio.metrics.alignment import likely_alike, tm_scores
from ophio.protein import Protein, stack

LEVELS = (1.4, 0.9, 0.3)  # sigma at which the denoiser looks
TEMPERATURE = 0.45  # of the noise: sampling at a low temperature never meets all of it
BATCH = 32  # structures
SHRINKAGE = 5000.0  # of the linear map, best of 300 to 10,000 by cross-validation on 1,648 samples
ALIKE, SCREEN = 0.6, 0.42  # TM-score by the longer of two; as estimated, from which on they are aligned
REFERENCES = 400  # structures that neighbours are counted among


@dataclass(frozen=True)
class LinearMap:
    """y = offset + weights . (x - mean) / scale, fitted by ridge regression."""

    mean: Float[np.ndarray, "features"]
    scale: Float[np.ndarray, "features"]
    weights: Float[np.ndarray, "features"]
    offset: float

    @classmethod
    def fit(
        cls, x: Float[np.ndarray, "samples features"], y: Float[np.ndarray, "samples"], shrinkage: float = SHRINKAGE
    ) -> "LinearMap":
        """Solved in the space of samples: there are fewer of them than features."""
        mean, scale, offset = x.mean(0), x.std(0) + 1e-6, float(y.mean())
        known = (x - mean) / scale
        dual = np.linalg.solve(known @ known.T + shrinkage * np.eye(len(y)), y - offset)
        return cls(mean, scale, known.T @ dual, offset)

    def __call__(self, x: Float[np.ndarray, "samples features"]) -> Float[np.ndarray, "samples"]:
        return (x - self.mean) / self.scale @ self.weights + self.offset


def correlation(x: Float[np.ndarray, "samples features"], y: Float[np.ndarray, "samples"], folds: int = 10) -> float:
    """Of `LinearMap`s with values that they were not fitted to."""
    fold = np.random.default_rng(0).permutation(len(y)) % folds
    told = np.empty(len(y))
    for k in range(folds):
        told[fold == k] = LinearMap.fit(x[fold != k], y[fold != k])(x[fold == k])
    return float(np.corrcoef(told, y)[0, 1])


@torch.no_grad()
def invariants(
    diffusion: LatentDiffusion,
    autoencoder: Autoencoder,
    proteins: Sequence[Protein],
    reports: Sequence[Mapping[str, float]],
    seed: int = 0,
) -> Float[np.ndarray, "proteins features"]:
    """Of each chain: what the denoiser makes of its latent at three noise levels, its length, content and compactness.

    Mean and deviation over nodes of the scalars and of the lengths of vectors after every other block from the middle
    on. `reports`: of `sampling.report_of`. The noise is drawn with `seed`.
    """
    lengths = [protein.num_residues for protein in proteins]
    facts = np.column_stack([lengths, [[report[name] for name in BANDED] for report in reports]])
    order = np.argsort(lengths, kind="stable")
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for chosen in np.split(order, range(BATCH, len(order), BATCH)):
        batch = stack([proteins[k].center() for k in chosen])
        latent = diffusion.standardizer(autoencoder.encode(batch).cloud.center())
        asked = torch.from_numpy(facts[chosen, 1:]).float()
        asked = torch.cat([asked, torch.full_like(asked[:, :1], DESIGNED["designed"])], dim=-1)
        conditions = Conditions(torch.from_numpy(facts[chosen, 0]).long(), asked)
        seeds = torch.randint(2**62, (len(chosen),), generator=generator).tolist()
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        seen = [_seen(diffusion, latent, conditions, sigma, generators) for sigma in LEVELS]
        parts.append(np.concatenate([torch.cat(seen, dim=-1).numpy(), _terms(facts[chosen])], axis=-1))
    result = np.concatenate(parts)
    result[order] = result.copy()
    return result


def _seen(
    diffusion: LatentDiffusion, latent: Cloud, conditions: Conditions, sigma: float, generators: list[torch.Generator]
) -> Float[Tensor, "batch features"]:
    noisy = latent + centred_noise(latent, generators) * (TEMPERATURE * sigma)
    level = torch.full((len(latent.mask),), sigma)
    previous = diffusion.denoise(noisy, level, conditions)
    with _recorded(diffusion) as outputs:
        diffusion.denoise(noisy, level, conditions, previous)
    weight = latent.mask[..., None] / latent.mask.sum(-1)[:, None, None]
    columns = []
    for features in outputs:
        for values in (features[:, :, 0], features[:, :, 1:4].square().sum(2).sqrt()):
            mean = (values * weight).sum(1)
            columns += [mean, ((values - mean[:, None]).square() * weight).sum(1).sqrt()]
    return torch.cat(columns, dim=-1)


@contextmanager
def _recorded(diffusion: LatentDiffusion) -> Generator[list[Tensor], None, None]:
    """What every other block of the denoiser gives, from the middle on."""
    outputs: list[Tensor] = []
    blocks = list(diffusion.denoiser.blocks)
    hooks = [
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for block in blocks[max(0, len(blocks) // 2 - 1) :: 2]
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _terms(facts: Float[np.ndarray, "proteins 4"]) -> Float[np.ndarray, "proteins _"]:
    """Once for each noise level, so that they are shrunk no more than what the denoiser sees."""
    length, (helix, strand) = facts[:, 0] / 100, facts[:, 1:3].T
    products = [length, length**2, helix**2, helix * strand, strand**2]
    return np.tile(np.column_stack([facts[:, 1:], *products]), len(LEVELS))


def commonness(traces: Sequence[Float[Tensor, "_ 3"]], seed: int = 0) -> Float[np.ndarray, "traces"]:
    """Logarithm of 1 + how many of up to 400 of the CA traces (Å) are like each: TM-score by the longer above 0.6.

    Pairs whose estimated TM-score is below 0.42 are not aligned, and no trace counts itself.
    """
    references = torch.randperm(len(traces), generator=torch.Generator().manual_seed(seed))[:REFERENCES]
    pairs = torch.cartesian_prod(torch.arange(len(traces)), references)
    lengths = torch.tensor([len(trace) for trace in traces])[pairs]
    longer, shorter = lengths.amax(-1), lengths.amin(-1)
    possible = (shorter > ALIKE * longer) & (pairs[:, 0] != pairs[:, 1])
    pairs = likely_alike(traces, pairs[possible], SCREEN)
    count = torch.zeros(len(traces))
    if len(pairs):
        alike = tm_scores(traces, traces, pairs).amin(-1) > ALIKE
        count.index_add_(0, pairs[alike, 0], torch.ones(int(alike.sum())))
    return count.log1p().numpy().astype(float)
