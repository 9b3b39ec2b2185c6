"""Residues to Cloud nodes and back, blind to the order of interchangeable atoms.

A node sits at the CA. Atoms are vectors from it, one l=1 channel for each atom14 slot. Two interchangeable atoms
(`ophio.constants.PAIRS`) are stored as their centre, in the first one's slot, and as the l=2 harmonics of their half
difference, which do not change when the two swap (Ophiuchus, section 3).
"""

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from ophio.cloud import Cloud
from ophio.constants import ATOM14, NUM_SLOTS, NUM_TYPES, PAIRS, RESIDUE_NAMES, TYPE_OF
from ophio.irreps import join, solid_harmonics, split, symmetric_traceless
from ophio.layers import EquivariantNorm
from ophio.protein import Protein
from ophio.slots import slot_table, take

MAX_PAIRS = 2
_UNIT = 2.0  # Å: atoms lie one to three units from the CA


@cache
def atom_exists() -> Bool[Tensor, "21 14"]:
    """Which slots the residues of each type have."""
    sizes = torch.tensor([len(atoms) for atoms in ATOM14.values()] + [0])
    return torch.arange(NUM_SLOTS) < sizes[:, None]


@cache
def pair_tables() -> tuple[Int[Tensor, "21 2 2"], Bool[Tensor, "21 2"]]:
    """For each residue type (and unknown): the slots of its interchangeable pairs, and which of them exist."""
    return slot_table([PAIRS.get(name, []) for name in RESIDUE_NAMES])


class PairTables(nn.Module):
    """The pair tables as buffers, looked up by residue type."""

    slots: Tensor
    exists: Tensor

    def __init__(self):
        super().__init__()
        slots, exists = pair_tables()
        self.register_buffer("slots", slots, persistent=False)
        self.register_buffer("exists", exists, persistent=False)

    def forward(self, residue_type: Int[Tensor, "*batch L"]) -> tuple[Tensor, Tensor, Tensor]:
        """Slots of the first and the second atom of each pair [*batch, L, 2], and whether the pair exists."""
        slots = self.slots[residue_type]
        return slots[..., 0], slots[..., 1], self.exists[residue_type]


def put(
    atoms: Float[Tensor, "*batch 14 X"],
    slots: Int[Tensor, "*batch K"],
    values: Float[Tensor, "*batch K X"],
    where: Bool[Tensor, "*batch K"],
) -> Float[Tensor, "*batch 14 X"]:
    """Atoms with those at the given slots replaced, where told."""
    chosen = (F.one_hot(slots, NUM_SLOTS) * where[..., None]).to(atoms.dtype)  # [..., K, 14]
    kept = 1 - chosen.sum(-2)[..., None]
    return atoms * kept + torch.einsum("...ks,...kx->...sx", chosen, values)


@cache
def _swapped_slots() -> Int[Tensor, "21 14"]:
    """For each type, the slot that takes the place of each slot when interchangeable atoms swap."""
    table = torch.arange(NUM_SLOTS).repeat(NUM_TYPES + 1, 1)
    for name, pairs in PAIRS.items():
        for a, b in pairs:
            table[TYPE_OF[name], [a, b]] = torch.tensor([b, a])
    return table


def pair_mask(residue_type: Int[Tensor, "*batch L"]) -> Bool[Tensor, "*batch L 14"]:
    """True at the slots of interchangeable atoms (`constants.PAIRS`)."""
    slots = _swapped_slots().to(residue_type.device)[residue_type]
    return slots != torch.arange(NUM_SLOTS, device=slots.device)


def swap_pairs(
    atoms: Shaped[Tensor, "*batch L 14 X"],
    residue_type: Int[Tensor, "*batch L"],
    where: Bool[Tensor, "*batch L"] | None = None,
) -> Shaped[Tensor, "*batch L 14 X"]:
    """Exchanges the interchangeable atoms (both pairs of a ring) of all residues, or of those where told."""
    slots = _swapped_slots().to(residue_type.device)[residue_type]
    if where is not None:
        slots = torch.where(where[..., None], slots, torch.arange(NUM_SLOTS, device=slots.device))
    return take(atoms, slots)


class ResidueEncoding(nn.Module):
    """Protein -> Cloud with one node for each residue.

    Scalars: an embedding of the residue type and a perceptron of the distances to the CA (which also says which atoms
    are present). l=1: atoms; l=2: pairs; each type has its own linear map, added to one shared by all.

    Raises ValueError for an `lmax` below 2, which interchangeable atoms need.
    """

    def __init__(self, lmax: int, channels: int):
        super().__init__()
        if lmax < 2:
            raise ValueError(f"interchangeable atoms need lmax 2 at the residue level, not {lmax}")
        self.lmax = lmax
        self.pairs = PairTables()
        self.embedding = nn.Embedding(NUM_TYPES + 1, channels)
        self.distances = nn.Sequential(nn.Linear(2 * NUM_SLOTS, channels), nn.SiLU(), nn.Linear(channels, channels))
        # about 8 atoms of variance 1/3 each: unit variance in every channel
        self.atoms = nn.Parameter(torch.randn(NUM_TYPES + 1, NUM_SLOTS, channels) * 0.6)
        self.halves = nn.Parameter(torch.randn(NUM_TYPES + 1, MAX_PAIRS, channels))

    def forward(self, protein: Protein) -> Cloud:
        residue_type, mask = protein.residue_type, protein.residue_mask
        atoms, present, halves = self.order_free(protein)
        scalars = torch.cat([atoms.norm(dim=-1), present.to(atoms.dtype)], dim=-1)
        kinds = F.one_hot(residue_type, NUM_TYPES + 1).to(atoms.dtype)
        typed_atoms = torch.einsum("blt,blsx->blxts", kinds, atoms).flatten(-2)
        typed_halves = torch.einsum("blt,blkx->blxtk", kinds, halves).flatten(-2)
        parts = [
            (self.embedding(residue_type) + self.distances(scalars)).unsqueeze(-2),
            typed_atoms @ self.atoms.flatten(0, 1),
            typed_halves @ self.halves.flatten(0, 1),
        ]
        features = F.pad(join(parts), (0, 0, 0, (self.lmax + 1) ** 2 - 9)) * mask[..., None, None]
        return Cloud(protein.ca * mask[..., None], features, mask)

    def order_free(self, protein: Protein) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors from the CA [B, L, 14, 3] with pairs replaced by centres, which are present, and l=2 of the pairs.

        A pair of which one atom is missing counts as missing: half of it would reveal the order.
        """
        first, second, exists = self.pairs(protein.residue_type)
        complete = exists & protein.atom_mask.gather(-1, first) & protein.atom_mask.gather(-1, second)
        present = protein.atom_mask & protein.residue_mask[..., None]
        vectors = (protein.positions - protein.ca[..., None, :]) * present[..., None] / _UNIT
        a, b = take(vectors, first), take(vectors, second)
        atoms = put(put(vectors, first, 0.5 * (a + b) * complete[..., None], exists), second, 0 * b, exists)
        halves = solid_harmonics(0.5 * (a - b), 2)[..., 4:] * complete[..., None]
        present = present[..., None].to(atoms.dtype)
        for slots in (first, second):
            present = put(present, slots, complete[..., None].to(atoms.dtype), exists)
        return atoms, present[..., 0], halves


class ResidueDecoding(nn.Module):
    """Cloud -> logits of the 20 residue types and 14 atoms for a type: vectors from the node, pairs from l=2."""

    def __init__(self, lmax: int, channels: int):
        super().__init__()
        self.pairs = PairTables()
        self.norm = EquivariantNorm(lmax, channels)
        self.logits = nn.Sequential(nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, NUM_TYPES))
        scale = channels**-0.5
        self.shared = nn.Parameter(torch.randn(channels, NUM_SLOTS) * scale)
        self.atoms = nn.Parameter(torch.randn(channels, NUM_TYPES, NUM_SLOTS) * scale * 0.3)
        self.halves = nn.Parameter(torch.randn(channels, NUM_TYPES, MAX_PAIRS) * scale)

    def residue_logits(self, cloud: Cloud) -> Float[Tensor, "batch L 20"]:
        """From the scalars of each node."""
        return self.logits(split(self.norm(cloud.features))[0].squeeze(-2))

    def forward(self, cloud: Cloud, residue_type: Int[Tensor, "batch L"]) -> Float[Tensor, "batch L 14 3"]:
        """Positions (Å) of every slot of the given types; slots that a type does not have mean nothing."""
        known = residue_type.clamp(max=NUM_TYPES - 1)
        vectors, matrices = split(cloud.features)[1:3]
        kinds = F.one_hot(known, NUM_TYPES).to(vectors.dtype)
        of_types = (vectors @ self.atoms.flatten(1)).unflatten(-1, self.atoms.shape[1:])
        atoms = torch.einsum("blt,blxts->blsx", kinds, of_types) + (vectors @ self.shared).mT
        pairs = (matrices @ self.halves.flatten(1)).unflatten(-1, self.halves.shape[1:])
        halves = half_difference(torch.einsum("blt,blmtk->blkm", kinds, pairs))
        # both pairs of a ring point the same way: CE1 is bonded to CD1
        halves = halves * torch.where((halves * halves[..., :1, :]).sum(-1, keepdim=True) < 0, -1.0, 1.0)
        first, second, exists = self.pairs(residue_type)
        centre = take(atoms, first)
        atoms = put(put(atoms, first, centre + halves, exists), second, centre - halves, exists)
        return cloud.positions[..., None, :] + _UNIT * atoms


def half_difference(degree_two: Float[Tensor, "*batch 5"]) -> Float[Tensor, "*batch 3"]:
    """+-d from r^2 Y_2(d): the dominant eigenvector of the l=2 matrix, with the length its eigenvalue gives.

    The eigenvector itself is found without gradient. A power step from there has its value and a bounded gradient, in
    the true direction, also where eigenvalues meet; the eigenvalue's gradient is exact. Where the two largest
    eigenvalues meet, no axis stands out: the length falls to 0, since any choice would depend on the frame.
    """
    matrix = symmetric_traceless(degree_two)
    with torch.no_grad():
        values, vectors = torch.linalg.eigh(matrix)
        axis = vectors[..., -1]
        gap = (values[..., -1] - values[..., 0]).clamp(min=0.1)[..., None]
        lead = (values[..., 2:] - values[..., 1:2]) / values[..., 2:].clamp(min=1e-8)  # 1.5 for the matrix of a vector
    product = torch.einsum("...ij,...j->...i", matrix, axis)
    eigenvalue = (product * axis).sum(-1, keepdim=True)
    direction = axis + (product - eigenvalue * axis) / gap
    length = (1.5 * eigenvalue).clamp(min=1e-4).sqrt()  # the matrix of d has eigenvalue 2/3 |d|^2
    return direction * length * (lead / 0.05).clamp(max=1)


def name_pairs(positions: Float[Tensor, "*batch L 14 3"], residue_type: Int[Tensor, "*batch L"]) -> Tensor:
    """Names interchangeable atoms by the IUPAC rule: the torsion to the first one lies within +-90 degrees.

    Where this holds for both or for neither (a distorted group), first is the one that lies farther to that side.
    """
    chain = {"ASP": "CA CB CG OD1 OD2", "PHE": "CA CB CG CD1 CD2", "TYR": "CA CB CG CD1 CD2", "GLU": "CB CG CD OE1 OE2"}
    slots = torch.zeros(NUM_TYPES + 1, 5, dtype=torch.long)
    for name, atoms in chain.items():
        slots[TYPE_OF[name]] = torch.tensor([ATOM14[name].index(atom) for atom in atoms.split()])
    a, b, c, first, second = take(positions, slots.to(positions.device)[residue_type]).unbind(-2)
    axis = F.normalize(c - b, dim=-1)
    before, between = a - b, first - second
    # across the axis, towards 0 degrees
    ahead = (before * between).sum(-1) - (before * axis).sum(-1) * (between * axis).sum(-1)
    return swap_pairs(positions, residue_type, ahead < 0)
