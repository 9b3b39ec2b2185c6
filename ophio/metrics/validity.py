"""Is it a protein? Backbone bonds, angles and breaks, chirality, mirror images. One value per protein.

`linked[i]` says whether residues i and i+1 are meant to be bonded (see `chain_links`): pass that of a reference
structure so that gaps in an experimental chain do not count against its reconstruction. Default: all consecutive
residues.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ophio.constants import (
    ANGLE_LIMITS,
    BOND_LIMITS,
    BONDS,
    CA,
    CB,
    CHAIN_BREAK_CA,
    CHAIN_BREAK_CN,
    RESIDUE_NAMES,
    C,
    N,
    O,
)
from ophio.geometry import angle, backbone_torsions, dihedral, safe_norm
from ophio.metrics.rmsd import ca_rmsd
from ophio.slots import slot_table, take

OMEGA_TOLERANCE = math.radians(30)
LEFT_HANDED = (math.radians(-70), math.radians(-30))
MIRROR_MARGIN = 0.01  # Å; planar traces are their own mirror images
LEFT_HANDED_TURNS = 4  # consecutive CA torsions
_SLOTS = {"N": N, "CA": CA, "C": C, "O": O}
_NEXT_RESIDUE = {"C-N": (0, 1), "CA-C-N": (0, 0, 1), "C-N-CA": (0, 1, 1)}  # which atoms belong to residue i + 1


def chain_links(
    positions: Float[Tensor, "*batch L 14 3"], atom_mask: Bool[Tensor, "*batch L 14"]
) -> Bool[Tensor, "*batch L-1"]:
    """Consecutive residues with a CA and without a break: CA-CA at most 4.2 Å and C-N, where present, at most 2 Å."""
    ca, has_ca = positions[..., CA, :], atom_mask[..., CA]
    near = safe_norm(ca[..., 1:, :] - ca[..., :-1, :]) <= CHAIN_BREAK_CA
    bond, has_bond = _backbone_atoms("C-N", positions, atom_mask, None)
    bonded = safe_norm(bond[1] - bond[0]) <= CHAIN_BREAK_CN
    return has_ca[..., 1:] & has_ca[..., :-1] & near & (bonded | ~has_bond)


def chain_breaks(
    positions: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    linked: Bool[Tensor, "*batch L-1"] | None = None,
) -> Int[Tensor, "*batch"]:
    """Number of consecutive residues further apart than CA-CA 4.2 Å or C-N 2 Å."""
    consecutive = atom_mask[..., 1:, CA] & atom_mask[..., :-1, CA]
    consecutive = consecutive if linked is None else consecutive & linked
    return (consecutive & ~chain_links(positions, atom_mask)).sum(-1)


def backbone_bonds(
    positions: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    linked: Bool[Tensor, "*batch L-1"] | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Length (Å) and existence of every backbone bond, by kind; `C-N` has L-1 entries, the others L."""
    bonds = {kind: _backbone_atoms(kind, positions, atom_mask, linked) for kind in BOND_LIMITS}
    return {kind: (safe_norm(b - a), present) for kind, ((a, b), present) in bonds.items()}


def backbone_angles(
    positions: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    linked: Bool[Tensor, "*batch L-1"] | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Size (degrees) and existence of every backbone angle, by kind; those that span two residues have L-1 entries."""
    angles = {kind: _backbone_atoms(kind, positions, atom_mask, linked) for kind in ANGLE_LIMITS}
    return {kind: (torch.rad2deg(angle(*points)), present) for kind, (points, present) in angles.items()}


def bond_outliers(
    positions: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    linked: Bool[Tensor, "*batch L-1"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Fraction of N-CA, CA-C, C-N and C-O bonds outside `constants.BOND_LIMITS`."""
    return _outlier_fraction(backbone_bonds(positions, atom_mask, linked), BOND_LIMITS)


def angle_outliers(
    positions: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    linked: Bool[Tensor, "*batch L-1"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Fraction of N-CA-C, CA-C-N, C-N-CA and CA-C-O angles outside `constants.ANGLE_LIMITS`."""
    return _outlier_fraction(backbone_angles(positions, atom_mask, linked), ANGLE_LIMITS)


def valid_residues(
    positions: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    linked: Bool[Tensor, "*batch L-1"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Fraction of residues whose own backbone bonds and angles, and those of the peptide link to the next residue, all
    lie within `constants.BOND_LIMITS` and `ANGLE_LIMITS`; NaN without any.

    A residue that lacks N, CA, C or O counts for nothing, neither as valid nor in the total. Nor does a link that is
    not there: at the end, at a missing atom of the next residue, where `linked` is False.
    """
    valid = residues = atom_mask[..., [N, CA, C, O]].all(-1)
    bonds, angles = backbone_bonds(positions, atom_mask, linked), backbone_angles(positions, atom_mask, linked)
    for kind, (value, present) in (bonds | angles).items():
        low, high = (BOND_LIMITS | ANGLE_LIMITS)[kind]
        within = ((value >= low) & (value <= high)) | ~present
        missing = residues.shape[-1] - within.shape[-1]
        valid = valid & torch.nn.functional.pad(within, (0, missing), value=True)
    return valid.sum(-1).to(positions.dtype) / residues.sum(-1)


def omega_outliers(
    positions: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    linked: Bool[Tensor, "*batch L-1"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Fraction of peptide bonds more than 30 degrees away from planar, cis or trans."""
    torsions, exists = backbone_torsions(positions, atom_mask, linked)
    omega, present = torsions[..., 2].abs(), exists[..., 2]
    planar = torch.minimum(omega, math.pi - omega) <= OMEGA_TOLERANCE
    return (present & ~planar).sum(-1).to(positions.dtype) / present.sum(-1)


def chirality_errors(
    positions: Float[Tensor, "*batch L 14 3"], atom_mask: Bool[Tensor, "*batch L 14"]
) -> Int[Tensor, "*batch"]:
    """Number of D-amino acids: residues whose CB lies on the wrong side of N-CA-C."""
    n, c, cb = (positions[..., slot, :] - positions[..., CA, :] for slot in (N, C, CB))
    volume = (torch.linalg.cross(n, c) * cb).sum(-1)
    return (~(volume > 0) & atom_mask[..., [N, CA, C, CB]].all(-1)).sum(-1)


def left_handed_helices(
    positions: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    linked: Bool[Tensor, "*batch L-1"] | None = None,
) -> Int[Tensor, "*batch"]:
    """Number of stretches of four or more consecutive CA torsions between -70 and -30 degrees.

    A right-handed alpha helix has +50. Chains shorter than seven residues cannot have any.
    """
    ca, present = positions[..., CA, :], atom_mask[..., CA]
    last = ca.shape[-2] - 3
    if last < LEFT_HANDED_TURNS:
        return torch.zeros(ca.shape[:-2], dtype=torch.long, device=ca.device)
    torsion = dihedral(*(ca[..., k : last + k, :] for k in range(4)))
    exists = torch.stack([present[..., k : last + k] for k in range(4)]).all(0)
    if linked is not None:
        exists = exists & torch.stack([linked[..., k : last + k] for k in range(3)]).all(0)
    low, high = LEFT_HANDED
    window = ((torsion >= low) & (torsion <= high) & exists).unfold(-1, LEFT_HANDED_TURNS, 1).all(-1)
    return window[..., :1].sum(-1) + (window[..., 1:] & ~window[..., :-1]).sum(-1)


def is_mirrored(
    predicted: Float[Tensor, "*batch L 14 3"],
    true: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
) -> Bool[Tensor, "*batch"]:
    """True where the predicted CA trace fits the mirror image of the true one better, by more than 0.01 Å."""
    mirrored = true * true.new_tensor([1.0, 1.0, -1.0])
    return ca_rmsd(predicted, mirrored, atom_mask) < ca_rmsd(predicted, true, atom_mask) - MIRROR_MARGIN


_SIDE_CHAIN_SLOTS, _SIDE_CHAIN_EXISTS = slot_table(
    [[bond for bond in BONDS[name] if max(bond) >= CB] for name in RESIDUE_NAMES]
)


def side_chain_bond_rmsd(
    predicted: Float[Tensor, "*batch L 14 3"],
    true: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    residue_type: Int[Tensor, "*batch L"],
) -> Float[Tensor, "*batch"]:
    """Root-mean-square difference (Å) of the side-chain bond lengths of two structures; NaN where there are none."""
    first, second = _SIDE_CHAIN_SLOTS.to(residue_type.device)[residue_type].unbind(-1)
    exists = _SIDE_CHAIN_EXISTS.to(residue_type.device)[residue_type]
    exists = exists & atom_mask.gather(-1, first) & atom_mask.gather(-1, second)

    def lengths(positions: Tensor) -> Tensor:
        return safe_norm(take(positions, second) - take(positions, first))

    squared = (lengths(predicted) - lengths(true)).square() * exists
    return (squared.sum((-2, -1)) / exists.sum((-2, -1))).sqrt()


def _backbone_atoms(
    kind: str, positions: Tensor, atom_mask: Tensor, linked: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """The atoms that a bond or angle `kind` joins, [*batch, L or L-1, 3] each, and where all of them exist."""
    slots = [_SLOTS[atom] for atom in kind.split("-")]
    shifts = _NEXT_RESIDUE.get(kind, (0,) * len(slots))
    count = positions.shape[-3] - max(shifts)
    places = list(zip(slots, shifts, strict=True))
    points = [positions[..., shift : count + shift, slot, :] for slot, shift in places]
    present = torch.stack([atom_mask[..., shift : count + shift, slot] for slot, shift in places]).all(0)
    return points, present & linked if linked is not None and max(shifts) else present


def _outlier_fraction(
    values: dict[str, tuple[Tensor, Tensor]], limits: dict[str, tuple[float, float]]
) -> Float[Tensor, "*batch"]:
    outliers, total = [], []
    for kind, (value, present) in values.items():
        low, high = limits[kind]
        outliers.append((present & ~((value >= low) & (value <= high))).sum(-1))  # NaN counts as outside
        total.append(present.sum(-1))
    return torch.stack(outliers).sum(0) / torch.stack(total).sum(0)
