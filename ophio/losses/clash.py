"""Steric clashes between atoms of residues that are not neighbours."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ophio.constants import ATOM14, NUM_SLOTS, NUM_TYPES, RESIDUE_NAMES, VDW_RADIUS
from ophio.geometry import MIN_LENGTH
from ophio.losses.vector_map import masked_mean, square_distances


def vdw_radii() -> Float[Tensor, "21 14"]:
    """Van der Waals radius of every slot of every type (Å); 0 where there is no atom."""
    radii = torch.zeros(NUM_TYPES + 1, NUM_SLOTS)
    for kind, name in enumerate(RESIDUE_NAMES):
        radii[kind, : len(ATOM14[name])] = torch.tensor([VDW_RADIUS[atom[0]] for atom in ATOM14[name]])
    return radii


def clash(
    predicted: Float[Tensor, "batch k 3"],
    true: Float[Tensor, "batch k 3"],
    radius: Float[Tensor, "batch k"],
    residue: Int[Tensor, "batch k"],
    mask: Bool[Tensor, "batch k"],
    tolerance: float = 0.8,
) -> Float[Tensor, "batch"]:
    """Mean depth (Å) by which atoms come closer than `tolerance` times the sum of their radii, or than in truth."""
    distance = square_distances(predicted, predicted).clamp(min=MIN_LENGTH**2).sqrt()
    limit = tolerance * (radius[:, :, None] + radius[:, None])
    limit = torch.minimum(limit, square_distances(true, true).sqrt())
    apart = (residue[:, :, None] - residue[:, None]).abs() > 1
    return masked_mean((limit - distance).clamp(min=0), apart & mask[:, :, None] & mask[:, None])
