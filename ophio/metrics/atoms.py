"""Which atom of one residue corresponds to which of another: interchangeable names, residues of different types."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ophio.constants import ATOM14, NUM_SLOTS, NUM_TYPES, RESIDUE_NAMES
from ophio.protein import Protein
from ophio.residue import pair_mask


def _same_name_slots() -> Int[Tensor, "21 21 14"]:
    """[type, other type, slot of the other type] -> slot of `type` with that atom's name, or -1."""
    table = torch.full((NUM_TYPES + 1, NUM_TYPES + 1, NUM_SLOTS), -1)
    for i, name in enumerate(RESIDUE_NAMES):
        for j, other in enumerate(RESIDUE_NAMES):
            for slot, atom in enumerate(ATOM14[other]):
                if atom in ATOM14[name]:
                    table[i, j, slot] = ATOM14[name].index(atom)
    return table


_SAME_NAME = _same_name_slots()


def swappable(
    atom_mask: Bool[Tensor, "*batch L 14"], residue_type: Int[Tensor, "*batch L"]
) -> Bool[Tensor, "*batch L"]:
    """Residues that have interchangeable atoms, all of them present."""
    pairs = pair_mask(residue_type)
    return pairs.any(-1) & (atom_mask | ~pairs).all(-1)


def match_names(
    predicted: Protein, true: Protein
) -> tuple[Float[Tensor, "*batch L 14 3"], Bool[Tensor, "*batch L 14"]]:
    """Predicted positions in the slots of the true residue types, and the atoms present in both structures.

    Atoms correspond by name: where the types agree that is every atom; where they differ, the names that both types
    have (always the backbone, CB for two residues other than glycine, CG for LEU and PHE, ...).
    """
    slots = _SAME_NAME.to(true.residue_type.device)[predicted.residue_type, true.residue_type]
    source = slots.clamp(min=0)
    index = rearrange(source, "... slot -> ... slot 1").expand(predicted.positions.shape)
    shared = (slots >= 0) & torch.gather(predicted.atom_mask, -1, source) & true.atom_mask
    return torch.gather(predicted.positions, -2, index) * shared[..., None], shared
