"""Bond lengths, bond angles and torsions, predicted against true."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ophio.constants import ANGLES, BONDS, CA, CHAIN_BREAK_CN, CHI_SLOTS, NUM_SLOTS, RESIDUE_NAMES, C, N, O
from ophio.geometry import dihedral, safe_norm
from ophio.losses.vector_map import masked_mean
from ophio.slots import slot_table, take

_NEXT = NUM_SLOTS  # slots of the following residue come after the residue's own 14
_PEPTIDE_BONDS = [(C, _NEXT + N)]
_PEPTIDE_ANGLES = [(CA, C, _NEXT + N), (O, C, _NEXT + N), (C, _NEXT + N, _NEXT + CA)]
_PEPTIDE_TORSIONS = [(N, CA, C, _NEXT + N), (CA, C, _NEXT + N, _NEXT + CA), (C, _NEXT + N, _NEXT + CA, _NEXT + C)]


class Chemistry(nn.Module):
    """Mean deviations of bonds (Å), cosines of bond angles, and torsions (as points on the unit circle), per protein.

    Peptide bonds count where the true chain is not broken. Deviations d enter as sqrt(d^2 + e^2) - e, which keeps its
    slope for the small ones that decide whether a bond is good.
    """

    def __init__(self):
        super().__init__()
        terms = {
            "bonds": [BONDS[name] + _PEPTIDE_BONDS for name in RESIDUE_NAMES],
            "angles": [ANGLES[name] + _PEPTIDE_ANGLES for name in RESIDUE_NAMES],
            "torsions": [CHI_SLOTS[name] + _PEPTIDE_TORSIONS for name in RESIDUE_NAMES],
        }
        for term, rows in terms.items():
            slots, exists = slot_table(rows)
            self.register_buffer(f"{term}_slots", slots, persistent=False)
            self.register_buffer(f"{term}_exist", exists, persistent=False)

    def forward(
        self,
        predicted: Float[Tensor, "batch L 14 3"],
        true: Float[Tensor, "batch L 14 3"],
        mask: Bool[Tensor, "batch L 14"],
        residue_type: Int[Tensor, "batch L"],
    ) -> dict[str, Float[Tensor, "batch"]]:
        # the last residue is followed by one without atoms
        predicted, true = (F.pad(x, (0, 0, 0, 0, 0, 1)) for x in (predicted, true))
        mask, residue_type = F.pad(mask, (0, 0, 0, 1)), F.pad(residue_type, (0, 1))
        linked = (true[:, 1:, N] - true[:, :-1, C]).norm(dim=-1) < CHAIN_BREAK_CN
        present = torch.cat([mask[:, :-1], mask[:, 1:] & linked[..., None]], dim=-1)
        windows = [torch.cat([x[:, :-1], x[:, 1:]], dim=2) for x in (predicted, true)]
        return {
            "bonds": self._deviation("bonds", windows, present, residue_type, _length, 0.01),
            "angles": self._deviation("angles", windows, present, residue_type, _cosine, 0.01),
            "torsions": self._deviation("torsions", windows, present, residue_type, _torsion, 0.1),
        }

    def _deviation(self, term, windows, present, residue_type, function, softness) -> Float[Tensor, "batch"]:
        kinds = residue_type[:, :-1]
        slots = getattr(self, f"{term}_slots")[kinds]
        exists = getattr(self, f"{term}_exist")[kinds]
        batch, length, rows, arity = slots.shape
        flat = slots.flatten(2)
        exists = exists & present.gather(-1, flat).unflatten(2, (rows, arity)).all(-1)
        values = [function(*take(atoms, flat).unflatten(2, (rows, arity)).unbind(3)) for atoms in windows]
        square = (values[0] - values[1]).square()
        square = square.sum(-1) if square.dim() > exists.dim() else square
        return masked_mean((square + softness**2).sqrt() - softness, exists)


def _length(a: Tensor, b: Tensor) -> Tensor:
    return safe_norm(a - b)


def _cosine(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    u, v = a - b, c - b
    return (u * v).sum(-1) / (safe_norm(u) * safe_norm(v)).clamp(min=0.1)


def _torsion(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The torsion as a point on the unit circle: no jump at 180 degrees."""
    angle = dihedral(a, b, c, d)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)
