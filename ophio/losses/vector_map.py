"""The vector map: difference vectors between atoms, predicted against true (Ophiuchus, section 3).

Vectors, not distances: distances cannot tell a protein from its mirror image. The loss of a pair is the pseudo-Huber
function of the length of (x_i - x_j) - (t_i - t_j), which equals the difference of the two atoms' errors. Unlike a Huber
function of each component it does not depend on the orientation.

All pairs would be quadratic in atoms. Pairs within a residue and between neighbours are taken completely, the others
between atoms drawn at random, so memory is linear in length.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor


def pseudo_huber(square: Float[Tensor, "*shape"], delta: float) -> Float[Tensor, "*shape"]:
    """Of a squared length: half the square when small, delta times the length when large."""
    return delta**2 * ((1 + square / delta**2).sqrt() - 1)


def masked_mean(values: Float[Tensor, "batch *shape"], mask: Bool[Tensor, "batch *shape"]) -> Float[Tensor, "batch"]:
    """Mean over the entries of each protein where `mask` holds; 0 where there is none."""
    values, weights = values.flatten(1), mask.flatten(1).to(values.dtype)
    return (values * weights).sum(1) / weights.sum(1).clamp(min=1)


def square_distances(a: Float[Tensor, "*batch n 3"], b: Float[Tensor, "*batch m 3"]) -> Float[Tensor, "*batch n m"]:
    """Between all pairs. One coordinate after the other: rows of three numbers are slow to sum over."""
    x, y, z = ((p[..., :, None] - q[..., None, :]).square() for p, q in zip(a.unbind(-1), b.unbind(-1), strict=True))
    return x + y + z


def local_vector_map(
    error: Float[Tensor, "batch L 14 3"], mask: Bool[Tensor, "batch L 14"], delta: float = 1.0
) -> Float[Tensor, "batch"]:
    """Mean `pseudo_huber` (Å²) over all pairs of atoms in the same and in consecutive residues.

    `error`: predicted minus true positions, Å.
    """
    # the last residue is followed by nothing
    window = torch.cat([error, F.pad(error[:, 1:], (0, 0, 0, 0, 0, 1))], dim=2)
    present = torch.cat([mask, F.pad(mask[:, 1:], (0, 0, 0, 1))], dim=2)
    pairs = mask[:, :, :, None] & present[:, :, None]
    return masked_mean(pseudo_huber(square_distances(error, window), delta), pairs)


def sample_atoms(
    mask: Bool[Tensor, "batch L 14"], num_atoms: int
) -> tuple[Int[Tensor, "batch k"], Bool[Tensor, "batch k"]]:
    """Indices into the flattened L x 14 atoms, drawn without replacement among those present; False where too few."""
    present = rearrange(mask, "b l a -> b (l a)")
    keys = torch.rand(present.shape, device=mask.device).masked_fill(~present, -1.0)
    values, index = keys.topk(min(num_atoms, present.shape[1]), dim=1)
    return index, values >= 0


def sampled_vector_map(
    error: Float[Tensor, "batch k 3"],
    true: Float[Tensor, "batch k 3"],
    mask: Bool[Tensor, "batch k"],
    radius: float = 32.0,
    delta: float = 1.0,
) -> Float[Tensor, "batch"]:
    """Mean `pseudo_huber` (Å²) over all pairs of the given atoms that are within `radius` (Å) in the true structure."""
    near = square_distances(true, true) < radius**2
    return masked_mean(pseudo_huber(square_distances(error, error), delta), near & mask[:, :, None] & mask[:, None])
