"""The last layer of the decoder: backbone atoms moved onto the covalent geometry of a peptide.

Bond lengths and bond angles of the peptide group vary by a few hundredths of an Å; a decoder that is right to a tenth of
an Å breaks them nonetheless. A few sweeps of position-based dynamics (Müller et al. 2007: each distance pulls its two
atoms half-way to its ideal value) restore them with the smallest moves. Differentiable and equivariant, no parameters.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ophio.constants import BACKBONE_BOND_LENGTH, CA, C, N, O

_NEXT = 4  # N, CA, C, O of the following residue come after the residue's own
# Å, means of high-resolution structures (Engh & Huber 1991). 1-3 distances fix the angles; N-CA-C is left free.
IDEAL_DISTANCES = {
    (N, CA): BACKBONE_BOND_LENGTH["N-CA"],
    (CA, C): BACKBONE_BOND_LENGTH["CA-C"],
    (C, O): BACKBONE_BOND_LENGTH["C-O"],
    (C, _NEXT + N): BACKBONE_BOND_LENGTH["C-N"],
    (CA, O): 2.401,
    (CA, _NEXT + N): 2.432,
    (O, _NEXT + N): 2.250,
    (C, _NEXT + CA): 2.433,
}
TAU_RANGE = (2.37, 2.55)  # Å from N to C: N-CA-C between 105 and 117.5 degrees
LINK_LIMIT = 3.5  # Å between C and the next N, before any correction; farther apart, residues are not pulled together
MAX_CB_DEVIATION = 0.25  # Å; farther from where N, CA and C put it, CB counts as an outlier (Lovell et al. 2003)


def ideal_cb(backbone: Float[Tensor, "*batch A 3"]) -> Float[Tensor, "*batch 3"]:
    """Where N, CA and C put the CB of an L-amino acid: tetrahedral, 1.53 Å from CA.

    The coefficients are those that ProteinMPNN was trained with (Dauparas et al. 2022, Science 378:49).
    """
    n, ca, c = backbone[..., N, :], backbone[..., CA, :], backbone[..., C, :]
    b, d = ca - n, c - ca
    return ca - 0.58273431 * torch.linalg.cross(b, d) + 0.56802827 * b - 0.54067466 * d


class BackboneGeometry(nn.Module):
    """Pulls N, CA, C, O towards ideal distances, and CB to within 0.25 Å of its ideal place: every residue comes out
    left-handed. The side chain moves with its CA, and with its CB.

    Args:
        sweeps: how often every distance is corrected; 0 returns the input.
        relaxation: share of the deviation that a sweep removes.
        limit_tau: keep N-CA-C, which proteins do vary, within `TAU_RANGE`.
    """

    incidence: Tensor
    ideal: Tensor
    across: Tensor

    def __init__(self, sweeps: int = 10, relaxation: float = 0.5, limit_tau: bool = False):
        super().__init__()
        self.sweeps, self.relaxation, self.limit_tau = sweeps, relaxation, limit_tau
        incidence = torch.zeros(len(IDEAL_DISTANCES), 2 * _NEXT)
        for row, (start, end) in enumerate(IDEAL_DISTANCES):
            incidence[row, start], incidence[row, end] = -1, 1
        self.register_buffer("incidence", incidence, persistent=False)
        self.register_buffer("ideal", torch.tensor(list(IDEAL_DISTANCES.values())), persistent=False)
        self.register_buffer("across", torch.tensor([end >= _NEXT for _, end in IDEAL_DISTANCES]), persistent=False)

    def forward(
        self, positions: Float[Tensor, "batch L 14 3"], mask: Bool[Tensor, "batch L"]
    ) -> Float[Tensor, "batch L 14 3"]:
        """Residues farther apart than a chain break, or masked, do not pull at each other."""
        backbone = positions[..., :_NEXT, :]
        active = self._active(backbone, mask)
        if self.sweeps == 0:
            return positions
        x, active = rearrange(backbone, "b l a xyz -> a xyz b l"), rearrange(active, "b l k -> k b l")
        for _ in range(self.sweeps):
            moves = self._corrections(x, active)
            if self.limit_tau:
                moves = moves + self._tau_corrections(x, mask)
            x = x + moves
        backbone = rearrange(x, "a xyz b l -> b l a xyz")
        shift = backbone[..., CA : CA + 1, :] - positions[..., CA : CA + 1, :]
        side_chain = positions[..., _NEXT:, :] + shift
        deviation = side_chain[..., :1, :] - ideal_cb(backbone)[..., None, :]
        length = deviation.square().sum(-1, keepdim=True).clamp(min=1e-8).sqrt()
        excess = deviation * (1 - MAX_CB_DEVIATION / length).clamp(min=0)
        return torch.cat([backbone, side_chain - excess], dim=-2)

    def _active(self, backbone: Tensor, mask: Tensor) -> Bool[Tensor, "batch L 8"]:
        gap = backbone[:, 1:, N] - backbone[:, :-1, C]
        linked = (gap.square().sum(-1) < LINK_LIMIT**2) & mask[:, 1:] & mask[:, :-1]
        linked = torch.cat([linked, torch.zeros_like(mask[:, :1])], dim=1)
        return mask[..., None] & (linked[..., None] | ~self.across)

    # atoms first, residues last: every step is one pass over long rows

    def _tau_corrections(
        self, x: Float[Tensor, "4 3 batch L"], mask: Bool[Tensor, "batch L"]
    ) -> Float[Tensor, "4 3 batch L"]:
        across = x[C] - x[N]
        length = across.square().sum(0).clamp(min=0.25).sqrt()
        excess = length - length.clamp(*TAU_RANGE)
        pull = 0.5 * self.relaxation * across * (excess / length * mask)
        zero = torch.zeros_like(pull)
        return torch.stack([pull, zero, -pull, zero])  # N, CA, C, O

    def _corrections(
        self, x: Float[Tensor, "4 3 batch L"], active: Bool[Tensor, "8 batch L"]
    ) -> Float[Tensor, "4 3 batch L"]:
        following = torch.cat([x[..., 1:], x[..., -1:]], dim=-1)
        atoms = torch.cat([x, following])
        vectors = (self.incidence @ atoms.flatten(1)).unflatten(1, atoms.shape[1:])
        length = vectors.square().sum(1).clamp(min=0.25).sqrt()  # clamp: atoms on top of each other stay finite
        ideal = self.ideal[:, None, None]
        pull = 0.5 * self.relaxation * active * (1 - ideal / length)
        moves = -(self.incidence.T @ (pull[:, None] * vectors).flatten(1)).unflatten(1, atoms.shape[1:])
        own, of_next = moves.split(_NEXT)
        return own + torch.cat([torch.zeros_like(of_next[..., :1]), of_next[..., :-1]], dim=-1)
