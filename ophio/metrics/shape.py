"""Size and shape of a chain. One value per protein, padding ignored."""

from jaxtyping import Bool, Float
from torch import Tensor

from ophio.constants import CA

COMPACT_EXPONENT = 0.38
"""Radii of gyration of globular chains grow as N^0.38 (Skolnick et al. 1997): about 2.2 N^0.38 Å."""


def radius_of_gyration(
    positions: Float[Tensor, "*batch L 14 3"], atom_mask: Bool[Tensor, "*batch L 14"]
) -> Float[Tensor, "*batch"]:
    """Root-mean-square distance (Å) of the CA atoms from their mean, all of equal mass; NaN without any."""
    present = atom_mask[..., CA]
    weight = (present / present.sum(-1, keepdim=True))[..., None].to(positions.dtype)
    ca = positions[..., CA, :].masked_fill(~present[..., None], 0.0)
    centred = ca - (weight * ca).sum(-2, keepdim=True)
    return (weight * centred.square()).sum((-2, -1)).sqrt()
