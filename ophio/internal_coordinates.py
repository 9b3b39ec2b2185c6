"""Chains as bond lengths, bond angles and torsions, and back.

Each atom is placed from three others by its distance, angle and torsion (NeRF, Parsons et al. 2005, J. Comput. Chem.
26:1063). Residues are built side by side, each in the frame of its N, CA and C; the frames are then chained by a scan.
Second branches (CG2 of VAL, CD2 of rings, O) turn with the first: their torsion is measured from it.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ophio.constants import BONDS, CA, CB, NUM_SLOTS, NUM_TYPES, RESIDUE_NAMES, C, N, O
from ophio.geometry import angle, dihedral, safe_norm
from ophio.slots import take

BACKBONE = (N, CA, C)


@dataclass(frozen=True)
class InternalCoordinates:
    """Distances (Å), angles and torsions (radians) that place every atom of chains of L residues.

    `link`: N, CA and C of residue i + 1 from the atoms before them; `tau`: N-CA, CA-C and N-CA-C of each residue;
    `atoms`: the other slots (`references` says from which atoms they are measured). Torsions are last.
    """

    tau: Float[Tensor, "*batch L 3"]
    link: Float[Tensor, "*batch L-1 3 3"]
    atoms: Float[Tensor, "*batch L 14 3"]

    def toward(self, other: "InternalCoordinates", times: Float[Tensor, "T"]) -> "InternalCoordinates":
        """A fraction `times` of the way to those of `other`, [T, ...]; torsions go the shorter way round."""

        def between(a: Tensor, b: Tensor, periodic: bool) -> Tensor:
            difference = b - a
            if periodic:
                turn = difference[..., 2:]
                turn = torch.remainder(turn + math.pi, 2 * math.pi) - math.pi
                difference = torch.cat([difference[..., :2], turn], -1)
            return a + times.view(-1, *[1] * a.dim()) * difference

        return InternalCoordinates(
            between(self.tau, other.tau, False),
            between(self.link, other.link, True),
            between(self.atoms, other.atoms, True),
        )


def internal_coordinates(
    positions: Float[Tensor, "*batch L 14 3"], residue_type: Int[Tensor, "L"]
) -> InternalCoordinates:
    """Of chains whose N, CA and C are all present; what is measured from missing atoms means nothing."""
    n, ca, c = (positions[..., slot, :] for slot in BACKBONE)
    tau = torch.stack([safe_norm(ca - n), safe_norm(c - ca), angle(n, ca, c)], -1)
    chain = [n[..., :-1, :], ca[..., :-1, :], c[..., :-1, :], n[..., 1:, :], ca[..., 1:, :], c[..., 1:, :]]
    link = torch.stack([_measured(*chain[k : k + 4]) for k in range(3)], -2)
    references = [take(_with_next(positions), slots) for slots in _references(residue_type).unbind(-1)]
    return InternalCoordinates(tau, link, _measured(*references, positions))


def positions_of(coordinates: InternalCoordinates, residue_type: Int[Tensor, "L"]) -> Float[Tensor, "*batch L 14 3"]:
    """Atoms of the chain, CA of the first residue at the origin."""
    local = _own_backbone(coordinates.tau)
    rotation, origin = _chained(*_steps(local, coordinates.link, coordinates.tau))
    backbone = local @ rotation.mT + origin[..., None, :]
    positions = torch.nn.functional.pad(backbone, (0, 0, 0, NUM_SLOTS - len(BACKBONE)))
    references = _references(residue_type)
    for slot in range(len(BACKBONE), NUM_SLOTS):  # atoms are measured from earlier slots
        a, b, c = take(_with_next(positions), references[..., slot, :].expand(*positions.shape[:-2], 3)).unbind(-2)
        placed = _placed(a, b, c, coordinates.atoms[..., slot, :])
        positions = torch.cat([positions[..., :slot, :], placed[..., None, :], positions[..., slot + 1 :, :]], -2)
    return positions


def buildable(atom_mask: Bool[Tensor, "*batch L 14"], residue_type: Int[Tensor, "L"]) -> Bool[Tensor, "*batch L 14"]:
    """The atoms that are present together with all that they are measured from."""
    present = atom_mask
    references = _references(residue_type)
    for slot in range(len(BACKBONE), NUM_SLOTS):
        needed = take(_with_next(present[..., None]), references[..., slot, :].expand(*present.shape[:-1], 3))
        kept = present[..., slot] & needed[..., 0].all(-1)
        present = torch.cat([present[..., :slot], kept[..., None], present[..., slot + 1 :]], -1)
    return present


def _measured(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Float[Tensor, "*batch 3"]:
    """Distance c-d, angle b-c-d and torsion a-b-c-d."""
    return torch.stack([safe_norm(d - c), angle(b, c, d), dihedral(a, b, c, d)], -1)


def _placed(a: Tensor, b: Tensor, c: Tensor, measures: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """The point d with the given `_measured`."""
    length, bend, torsion = measures[..., None].unbind(-2)
    along = torch.nn.functional.normalize(c - b, dim=-1)
    normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, along), dim=-1)
    across = torch.linalg.cross(normal, along)
    around = torsion.cos() * across + torsion.sin() * normal
    return c + length * (-bend.cos() * along + bend.sin() * around)


def _own_backbone(tau: Float[Tensor, "*batch L 3"]) -> Float[Tensor, "*batch L 3 3"]:
    """N, CA, C of a residue in its own frame: CA at the origin, C along x, N in the xy plane."""
    to_n, to_c, bend = tau.unbind(-1)
    zero = torch.zeros_like(to_n)
    n = torch.stack([to_n * bend.cos(), to_n * bend.sin(), zero], -1)
    return torch.stack([n, torch.zeros_like(n), torch.stack([to_c, zero, zero], -1)], -2)


def _steps(
    local: Float[Tensor, "*batch L 3 3"], link: Float[Tensor, "*batch L-1 3 3"], tau: Float[Tensor, "*batch L 3"]
) -> tuple[Float[Tensor, "*batch L 3 3"], Float[Tensor, "*batch L 3"]]:
    """Frame and CA of each residue as seen from the one before; of the first, the identity."""
    atoms = list(local[..., :-1, :, :].unbind(-2))
    for k in range(3):
        atoms.append(_placed(*atoms[k : k + 3], link[..., k, :]))
    n, ca, c = atoms[3:]
    x = torch.nn.functional.normalize(c - ca, dim=-1)
    z = torch.nn.functional.normalize(torch.linalg.cross(x, n - ca), dim=-1)
    frame = torch.stack([x, torch.linalg.cross(z, x), z], -1)
    first = torch.eye(3).to(frame).expand(*tau.shape[:-2], 1, 3, 3)
    return torch.cat([first, frame], -3), torch.cat([torch.zeros_like(tau[..., :1, :]), ca], -2)


def _chained(
    rotation: Float[Tensor, "*batch L 3 3"], origin: Float[Tensor, "*batch L 3"]
) -> tuple[Float[Tensor, "*batch L 3 3"], Float[Tensor, "*batch L 3"]]:
    """Products of all steps up to each residue, by doubling."""
    reach = 1
    while reach < rotation.shape[-3]:
        before, here = rotation[..., :-reach, :, :], rotation[..., reach:, :, :]
        shifted = (before @ origin[..., reach:, :, None]).squeeze(-1) + origin[..., :-reach, :]
        rotation = torch.cat([rotation[..., :reach, :, :], before @ here], -3)
        origin = torch.cat([origin[..., :reach, :], shifted], -2)
        reach *= 2
    return rotation, origin


def _with_next(atoms: Tensor) -> Tensor:
    """Slots of a residue, and as one more slot N of the next; of the last residue, its own N."""
    following = torch.cat([atoms[..., 1:, N, :], atoms[..., -1:, N, :]], -2)
    return torch.cat([atoms, following[..., None, :]], -2)


def _reference_table() -> Int[Tensor, "21 14 3"]:
    """Slots a, b, c that each atom d is measured from: c is bonded to it, b to c."""
    next_n = NUM_SLOTS
    table = torch.tensor(BACKBONE).repeat(NUM_TYPES + 1, NUM_SLOTS, 1)
    table[:, O] = torch.tensor([next_n, CA, C])
    table[:, CB] = torch.tensor([C, N, CA])
    for kind, name in enumerate(RESIDUE_NAMES):
        parent, children = {CA: N, CB: CA}, {}
        for a, b in BONDS[name]:
            low, high = min(a, b), max(a, b)
            if high > CB and high not in parent:
                parent[high] = low
                first = children.setdefault(low, high)
                before = parent[low]
                table[kind, high] = torch.tensor([parent[before] if first == high else first, before, low])
    return table


_REFERENCES = _reference_table()


def _references(residue_type: Int[Tensor, "L"]) -> Int[Tensor, "L 14 3"]:
    return _REFERENCES.to(residue_type.device)[residue_type]
