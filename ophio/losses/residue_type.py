"""Cross-entropy of the residue type."""

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ophio.constants import UNKNOWN
from ophio.losses.vector_map import masked_mean


def residue_type_cross_entropy(
    logits: Float[Tensor, "batch L 20"], residue_type: Int[Tensor, "batch L"], mask: Bool[Tensor, "batch L"]
) -> Float[Tensor, "batch"]:
    """Mean over the residues of each protein, in nats."""
    known = residue_type.masked_fill(residue_type == UNKNOWN, 0)
    return masked_mean(F.cross_entropy(logits.mT, known, reduction="none"), mask)
