"""Atoms that overlap."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ophio.constants import ATOM14, BONDS, CA, CB, NUM_SLOTS, NUM_TYPES, RESIDUE_NAMES, TYPE_OF, VDW_RADIUS, C, N
from ophio.losses.clash import vdw_radii

CA_DISTANCE = 3.0  # Å
OVERLAP = 0.8  # of the sum of the van der Waals radii
CLOSE_BONDS = 3  # atoms at most three bonds apart are as close as their geometry makes them
FAR = 99
CHUNK = 2**22  # distances held at once: bounds the memory for long chains
ROWS = 128  # atoms whose distances to those that follow are looked at together


def ca_clashes(
    positions: Float[Tensor, "*batch L 14 3"], atom_mask: Bool[Tensor, "*batch L 14"]
) -> Int[Tensor, "*batch"]:
    """Number of pairs of CA atoms, not of consecutive residues, closer than 3 Å."""
    ca, present = positions[..., CA, :], atom_mask[..., CA]
    close = torch.cdist(ca, ca, compute_mode="donot_use_mm_for_euclid_dist") < CA_DISTANCE
    return (close & present[..., None, :] & present[..., :, None]).triu(2).sum((-2, -1))


@torch.no_grad()
def clashes(
    positions: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    residue_type: Int[Tensor, "*batch L"],
) -> Float[Tensor, "*batch"]:
    """Clashing pairs of heavy atoms of different residues, per 1000 atoms.

    A pair clashes when it is closer than 0.8 of the sum of the van der Waals radii. Between consecutive residues, pairs
    of backbone atoms and pairs at most three bonds apart do not count; neither do two SG (disulfides).
    """
    size = atom_mask.shape[-2]
    chains = zip(
        positions.reshape(-1, size, NUM_SLOTS, 3),
        atom_mask.reshape(-1, size, NUM_SLOTS),
        residue_type.reshape(-1, size),
        strict=True,
    )
    counts = torch.stack([_count(*chain) for chain in chains]).reshape(atom_mask.shape[:-2])
    return 1000 * counts.to(positions.dtype) / atom_mask.sum((-2, -1))


def _count(
    positions: Float[Tensor, "L 14 3"], mask: Bool[Tensor, "L 14"], residue_type: Int[Tensor, "L"]
) -> Int[Tensor, ""]:
    """Clashes of one protein. Few pairs are close, so only those are looked at in detail."""
    points = positions[mask]
    residue, slot = mask.nonzero().unbind(-1)
    i, j = close_pairs(points, 2 * OVERLAP * max(VDW_RADIUS.values()))
    later = residue[j] > residue[i]
    i, j = i[later], j[later]
    radius, to_c, to_n, sulfur = (
        table.to(points.device)[residue_type[residue], slot] for table in (_RADIUS, _BONDS_TO_C, _BONDS_TO_N, _IS_SG)
    )
    overlap = (points[i] - points[j]).norm(dim=-1) < OVERLAP * (radius[i] + radius[j])
    bonded = (to_c[i] + to_n[j] + 1 <= CLOSE_BONDS) | ((slot[i] < CB) & (slot[j] < CB))
    exempt = ((residue[j] - residue[i] == 1) & bonded) | (sulfur[i] & sulfur[j])
    return (overlap & ~exempt).sum()


def close_pairs(points: Float[Tensor, "n 3"], cutoff: float) -> tuple[Int[Tensor, "k"], Int[Tensor, "k"]]:
    """Pairs i < j within the cutoff, and a few beyond it."""
    points = points - points.mean(0)
    square = points.square().sum(-1)
    blocks, size = [], max(1, min(ROWS, CHUNK // max(1, len(points))))
    for start in range(0, max(1, len(points)), size):
        rows, columns = slice(start, start + size), slice(start, None)
        # half of the squared distance, less a constant a row; good to 0.01 Å here, and a margin keeps every pair
        half = torch.addmm(0.5 * square[columns], points[rows], points[columns].T, alpha=-1)
        near = half < 0.5 * ((cutoff + 0.1) ** 2 - square[rows, None])
        blocks.append(near.triu(1).nonzero() + start)
    i, j = torch.cat(blocks).unbind(-1)
    return i, j


def _bonds_from(start: int) -> Int[Tensor, "21 14"]:
    """Number of bonds between every atom and atom `start` of its residue."""
    table = torch.full((NUM_TYPES + 1, NUM_SLOTS), FAR)
    for residue_type, name in enumerate(RESIDUE_NAMES):
        shell, distance = {start}, 0
        while shell:
            table[residue_type, list(shell)] = distance
            near = {b if a in shell else a for a, b in BONDS[name] if (a in shell) != (b in shell)}
            shell = {atom for atom in near if table[residue_type, atom] == FAR}
            distance += 1
    return table


_RADIUS = vdw_radii()
_BONDS_TO_C, _BONDS_TO_N = _bonds_from(C), _bonds_from(N)
_IS_SG = torch.zeros(NUM_TYPES + 1, NUM_SLOTS, dtype=torch.bool)
_IS_SG[TYPE_OF["CYS"], ATOM14["CYS"].index("SG")] = True
