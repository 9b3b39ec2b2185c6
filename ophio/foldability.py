"""How well structures fold and how common their folds are, told from what a denoiser sees in them.

To fold, or even to score, a structure takes seconds; a look of the denoiser at its noised latent takes milliseconds. A
linear map of the invariants of what it sees, fitted to some hundreds of structures with measured energies, tells which
of the others are worth it; another, fitted to counts of structures alike, tells which are rare.
"""

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from ophio.autoencoder import Autoencoder
from ophio.cloud import Cloud
from ophio.diffusion import Conditions, LatentDiffusion
from ophio.diffusion.process import centred_noise
from ophio.errors import UserError
from ophio.files import sha256_of, write_whole
from ophio.pretrained import find, read_card
from ophio.protein import Protein, stack

LEVEL = 1.4  # sigma at which the denoiser looks: 0.9 and 0.3 tell a little less, and all three together hardly more
TEMPERATURE = 0.45  # of the noise: sampling at a low temperature never meets all of it
BATCH = 32  # structures
SHRINKAGE = 5000.0  # of the linear map, best of 300 to 10,000 by cross-validation on 1,648 samples
COMMON_SHRINKAGE = 1500.0  # of that of commonness, best of 300 to 15,000 on 1,800
FOLDABILITY, COMMON = ".foldability.safetensors", "common."  # the file beside a card; names in it


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

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """What a file keeps of it, in 32 bits."""
        arrays = {"mean": self.mean, "scale": self.scale, "weights": self.weights, "offset": np.array(self.offset)}
        return {prefix + name: torch.from_numpy(array).float() for name, array in arrays.items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], prefix: str = "") -> "LinearMap":
        """Raises KeyError where they are not all there."""
        mean, scale, weights, offset = (
            tensors[prefix + name].double().numpy() for name in ("mean", "scale", "weights", "offset")
        )
        return cls(mean, scale, weights, float(offset))


def correlation(
    x: Float[np.ndarray, "samples features"],
    y: Float[np.ndarray, "samples"],
    folds: int = 10,
    shrinkage: float = SHRINKAGE,
) -> float:
    """Of `LinearMap`s with values that they were not fitted to."""
    fold = np.random.default_rng(0).permutation(len(y)) % folds
    told = np.empty(len(y))
    for k in range(folds):
        told[fold == k] = LinearMap.fit(x[fold != k], y[fold != k], shrinkage)(x[fold == k])
    return float(np.corrcoef(told, y)[0, 1])


@dataclass(frozen=True)
class Foldability:
    """Energies told from `invariants`, and which are usual: those of good samples are below what is usual for their length.

    Energies are those of the best of a few designed sequences under trRosetta's prediction (one network), for a residue.
    """

    told: LinearMap
    usual: Float[np.ndarray, "3"]  # of 1, length / 100 and its square
    common: LinearMap | None = None  # ln(1 + how many of some hundreds of samples are alike), where that was counted

    @classmethod
    def fit(
        cls,
        seen: Float[np.ndarray, "structures features"],
        lengths: Int[np.ndarray, "structures"],
        energies: Float[np.ndarray, "structures"],
        common: LinearMap | None = None,
    ) -> "Foldability":
        """`seen`: of `invariants`; `energies`: measured, for a residue."""
        return cls(LinearMap.fit(seen, energies), length_trend(lengths, energies), common)

    def beyond_usual(
        self, energies: Float[np.ndarray, "structures"], lengths: Int[np.ndarray, "structures"]
    ) -> Float[np.ndarray, "structures"]:
        """How far energies (of a residue) lie above what is usual for the length, so negative where a sample is good."""
        return energies - powers_of(lengths) @ self.usual

    def save(self, path: Path) -> None:
        """Writes one safetensors file, complete or not at all."""
        tensors = self.told.tensors() | {"usual": torch.from_numpy(self.usual).float()}
        if self.common is not None:
            tensors |= self.common.tensors(COMMON)
        write_whole(path, serialise(tensors))

    @classmethod
    def load(cls, path: Path) -> "Foldability":
        """Raises UserError for a file that cannot be read or holds something else."""
        try:
            tensors = parse(path.read_bytes())
            common = LinearMap.of_tensors(tensors, COMMON) if f"{COMMON}weights" in tensors else None
            return cls(LinearMap.of_tensors(tensors), tensors["usual"].double().numpy(), common)
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise UserError(f"{path}: no map of energies can be read from it ({error}); fit one") from None


def foldability_of(model: str | Path) -> Foldability:
    """What comes with a diffusion model: NAME.foldability.safetensors beside its card, which has its hash.

    Raises UserError where there is none, or another than the card says.
    """
    card, path = read_card(model), find(model).with_suffix(FOLDABILITY)
    if "foldability" not in card:
        raise UserError(
            f"model {model}: cannot tell what folds; fit that first: pipelines/fit_foldability.py weights={model}"
        )
    found = Foldability.load(path)
    if sha256_of(path) != card["foldability"]["sha256"]:
        raise UserError(f"{path}: not the map that the card of {model} describes: copy both, or fit it again")
    return found


def attach(model: str | Path, foldability: Foldability, facts: Mapping[str, int | float]) -> Path:
    """Puts it beside the card of a diffusion model, which then has its hash and `facts`. Returns the file."""
    card, path = read_card(model), find(model).with_suffix(FOLDABILITY)
    foldability.save(path)
    card["foldability"] = {"sha256": sha256_of(path), **facts}
    write_whole(find(model), (json.dumps(card, indent=2) + "\n").encode())
    return path


def powers_of(lengths: Int[np.ndarray, "structures"]) -> Float[np.ndarray, "structures 3"]:
    """1, length / 100 and its square."""
    return (lengths / 100)[:, None] ** np.arange(3)


def length_trend(
    lengths: Int[np.ndarray, "structures"], values: Float[np.ndarray, "structures"]
) -> Float[np.ndarray, "3"]:
    """Least-squares coefficients of `powers_of(lengths)`."""
    return np.linalg.lstsq(powers_of(lengths), values, rcond=None)[0]


@torch.no_grad()
def invariants(
    diffusion: LatentDiffusion, autoencoder: Autoencoder, proteins: Sequence[Protein]
) -> Float[np.ndarray, "proteins features"]:
    """Of each chain: `seen_in` its latent."""
    lengths = np.array([protein.num_residues for protein in proteins])
    order = np.argsort(lengths, kind="stable")
    parts = []
    for chosen in np.split(order, range(BATCH, len(order), BATCH)):
        batch = stack([proteins[k].center() for k in chosen])
        parts.append(seen_in(diffusion, autoencoder.encode(batch).cloud, lengths[chosen]))
    seen = np.empty((len(order), parts[0].shape[-1]))
    seen[order] = np.concatenate(parts)
    return seen


@torch.no_grad()
def seen_in(
    diffusion: LatentDiffusion, latents: Cloud, lengths: Int[np.ndarray, "batch"]
) -> Float[np.ndarray, "batch features"]:
    """What the denoiser makes of latents (Å, as an encoder gives them), noised, which it is shown as its estimate.

    Mean and deviation over nodes of the scalars and of the lengths of vectors after every other block from the middle
    on; and the length (residues). All latents of a number of nodes are noised alike: what is seen in one depends on nothing
    else.
    """
    latents = diffusion.standardizer(latents.center())
    noise = centred_noise(latents, [torch.Generator().manual_seed(nodes) for nodes in latents.mask.sum(-1).tolist()])
    level = latents.positions.new_full((len(lengths),), LEVEL)
    conditions = Conditions.of_lengths(torch.from_numpy(lengths)).to(latents.positions.device)
    with _recorded(diffusion) as outputs:
        diffusion.denoise(latents + noise * (TEMPERATURE * LEVEL), level, conditions, latents)
    features = torch.cat([_over_nodes(output, latents.mask) for output in outputs], dim=-1)
    return np.concatenate([features.double().cpu().numpy(), powers_of(lengths)[:, 1:]], axis=-1)


def _over_nodes(
    features: Float[Tensor, "batch nodes m channels"], mask: Bool[Tensor, "batch nodes"]
) -> Float[Tensor, "batch invariants"]:
    weight = mask[..., None] / mask.sum(-1)[:, None, None]
    columns = []
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
