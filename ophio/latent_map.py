"""Latents of many chains as points of a plane: numbers that do not turn with a chain, and their principal components."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ophio.autoencoder import Latent
from ophio.geometry import safe_norm
from ophio.irreps import split
from ophio.metrics.secondary_structure import helix_strand_content
from ophio.protein import Protein

HELICAL, STRANDED = 0.15, 0.10  # least fractions of residues


def invariants(latent: Latent) -> Float[Tensor, " D"]:
    """Mean and spread over the nodes of one latent: of its scalars, and of the lengths of its higher degrees."""
    features = latent.cloud.features[latent.cloud.mask]
    scalars, *others = split(features)
    of_node = torch.cat([scalars[:, 0], *(safe_norm(part.transpose(-1, -2)) for part in others)], dim=-1)
    return torch.cat([of_node.mean(0), of_node.std(0, correction=0)])


def principal_components(
    points: Float[np.ndarray, "n D"], num: int = 2
) -> tuple[Float[np.ndarray, "n num"], Float[np.ndarray, " num"]]:
    """Of points whose coordinates are brought to unit variance: projections, and the share of the variance of each."""
    spread = points.std(0)
    scaled = (points - points.mean(0)) / np.where(spread > 1e-6, spread, np.inf)  # what never changes counts nothing
    left, singular, _ = np.linalg.svd(scaled, full_matrices=False)
    shares = singular**2 / (singular**2).sum()
    return (left * singular)[:, :num], shares[:num]


def fold_class(protein: Protein) -> str:
    """By helix and strand content (P-SEA), with the limits of Nakashima, Nishikawa & Ooi (1986, J. Biochem. 99:153)."""
    helix, strand = helix_strand_content(protein)
    names = {
        (True, False): "helix",
        (False, True): "strand",
        (True, True): "helix and strand",
        (False, False): "little of both",
    }
    return names[helix > HELICAL, strand > STRANDED]
