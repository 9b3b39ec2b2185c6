"""A geometry finish for decoded structures: sound bonds, angles, planes, peptide links and contacts, with small moves.

A decoder that is right to a few tenths of an Å still breaks bonds and overlaps atoms. `idealize` repairs that by
position-based dynamics (Müller et al. 2007): every distance and every volume that is out of its range moves its atoms
just far enough to be back in, all of them at once, again and again. What is in range stays where it is. There is no
energy in it, so it does not fold: a wrong trace stays a wrong trace, and torsions stay near those of the start, the more
so where they are held.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, permutations

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ophio.constants import (
    ANGLES,
    ATOM14,
    BACKBONE_ANGLE,
    BACKBONE_BOND_LENGTH,
    BONDS,
    CA,
    CB,
    NUM_SLOTS,
    NUM_TYPES,
    RESIDUE_NAMES,
    TYPE_OF,
    VDW_RADIUS,
    C,
    N,
    O,
)
from ophio.geometry import backbone_torsions, safe_norm
from ophio.losses.clash import vdw_radii
from ophio.metrics.clashes import CLOSE_BONDS, FAR, OVERLAP, close_pairs
from ophio.metrics.ramachandran import usual_torsions
from ophio.overlaps import LONGEST_LINK, separate_residues
from ophio.protein import Protein
from ophio.slots import slot_table

RELAXATION, MOMENTUM = 1.5, 0.9  # of the moves
PUSHING = 0.55  # share of the sweeps in which clashing atoms are pushed well apart; in the others geometry settles
PUSH, HOLD = 0.2, 0.02  # weight of a contact against a bond, in either phase
PUSHING_HELD, PUSH_HELD = 0.7, 0.3  # of the first phase, where torsions are held: contacts have fewer ways out
CONTACT_SWEEPS = 20  # between looking for close atoms
CONTACT_REACH = 0.8  # Å beyond the limit: what may come too close before the next look
SKIN = 2.0  # Å beyond that: pairs that are remembered from one look to the next

BOND_TOLERANCE = 0.01  # Å
ANGLE_TOLERANCE = 2.0  # degrees
WIDE_ANGLES = {(N, CA, C): 4.0}  # degrees: this one gives way to the fold
FLATNESS = 0.15  # Å³ between four atoms of a plane: one of them about 0.03 Å off it, or a torsion by 4 degrees
OMEGA_FLATNESS = 0.4  # Å³: 10 degrees
HANDEDNESS = 1.8  # Å³ at least; a tetrahedral carbon has 2.5
PUSH_MARGIN, CLASH_MARGIN = 0.3, 0.02  # Å, in either phase
TORSION_TOLERANCE = 20.0  # degrees, where phi and psi are held
MIN_DISTANCE, MIN_GRADIENT = 0.1, 0.1  # Å, Å⁴: atoms on top of each other move by finite steps
_BEFORE = -NUM_SLOTS  # added to a slot: that atom of the residue before

# Medians of 3,811 natural chains (359,318 residues), in the order of `constants.BONDS` (Å) and `constants.ANGLES`
# (degrees). They are those of Engh & Huber (2001), which structures are refined with. The ideal coordinates of the
# chemical component dictionary are not: acids are protonated, most side-chain carbons have 109.5 degrees.
_LENGTHS = {
    "ALA": "1.459 1.525 1.233 1.524",
    "CYS": "1.457 1.523 1.232 1.529 1.809",
    "ASP": "1.460 1.526 1.232 1.532 1.519 1.250 1.250",
    "GLU": "1.459 1.525 1.232 1.531 1.522 1.519 1.250 1.250",
    "PHE": "1.458 1.524 1.232 1.532 1.504 1.388 1.388 1.388 1.388 1.384 1.384",
    "GLY": "1.453 1.516 1.233",
    "HIS": "1.459 1.524 1.232 1.532 1.497 1.379 1.355 1.323 1.373 1.322",
    "ILE": "1.459 1.525 1.233 1.544 1.532 1.525 1.516",
    "LYS": "1.459 1.526 1.232 1.531 1.522 1.523 1.522 1.490",
    "LEU": "1.458 1.524 1.232 1.531 1.531 1.521 1.521",
    "MET": "1.459 1.524 1.232 1.531 1.520 1.805 1.791",
    "ASN": "1.460 1.525 1.232 1.531 1.516 1.232 1.327",
    "PRO": "1.467 1.526 1.232 1.531 1.494 1.505 1.474",
    "GLN": "1.458 1.524 1.233 1.531 1.521 1.516 1.233 1.328",
    "ARG": "1.459 1.525 1.232 1.531 1.521 1.520 1.461 1.330 1.327 1.327",
    "SER": "1.459 1.525 1.233 1.529 1.417",
    "THR": "1.458 1.525 1.233 1.539 1.432 1.522",
    "VAL": "1.459 1.525 1.233 1.543 1.522 1.522",
    "TRP": "1.458 1.523 1.233 1.531 1.497 1.365 1.433 1.374 1.370 1.410 1.400 1.395 1.386 1.371 1.401",
    "TYR": "1.458 1.523 1.233 1.532 1.511 1.391 1.391 1.387 1.387 1.382 1.382 1.376",
}
_SIZES = {
    "ALA": "110.8 110.3 110.2 120.6",
    "CYS": "109.8 110.6 110.2 120.5 114.2",
    "ASP": "111.1 110.5 110.1 120.5 112.8 118.5 118.5 123.0",
    "GLU": "111.0 110.5 110.1 120.6 114.2 112.9 118.5 118.5 123.0",
    "PHE": "110.6 110.6 109.9 120.6 113.9 120.7 120.7 118.7 120.8 120.8 120.0 120.0 119.8",
    "GLY": "113.0 120.5",
    "HIS": "110.7 110.5 110.1 120.5 113.8 122.7 131.1 106.1 109.3 107.2 108.5 108.9",
    "ILE": "109.6 111.4 110.4 120.6 110.4 110.6 110.8 113.9",
    "LYS": "110.8 110.5 110.1 120.6 114.2 111.5 111.5 111.9",
    "LEU": "110.5 110.5 110.1 120.5 116.3 110.5 110.5 110.6",
    "MET": "110.6 110.5 110.1 120.5 114.0 112.7 100.8",
    "ASN": "111.2 110.6 110.3 120.6 112.7 120.9 116.5 122.6",
    "PRO": "111.6 112.6 103.3 111.2 120.4 104.4 105.4 102.9",
    "GLN": "110.5 110.6 110.2 120.5 114.1 112.6 120.9 116.5 122.6",
    "ARG": "110.7 110.6 110.1 120.6 114.2 111.5 112.0 124.5 120.4 119.9 119.7",
    "SER": "110.8 110.5 110.1 120.6 111.0",
    "THR": "110.1 111.3 109.8 120.6 109.5 110.9 109.3",
    "VAL": "109.6 111.5 110.3 120.6 110.5 110.5 110.6",
    "TRP": "110.3 110.7 110.0 120.6 113.8 126.9 126.8 106.3 110.1 107.2 133.9 118.9 108.9 107.5 122.4 130.2 118.7 "
    "117.5 121.1 121.5",
    "TYR": "110.4 110.7 110.0 120.6 113.9 120.9 120.9 118.2 121.1 121.1 119.6 119.6 120.3 119.8 119.8",
}
# The peptide link into a residue, degrees and tolerance: room for cis and trans, proline and others. Same source.
_LINK_ANGLES = {
    (_BEFORE + CA, _BEFORE + C, N): (117.0, 1.5),
    (_BEFORE + O, _BEFORE + C, N): (122.7, 2.0),
    (_BEFORE + C, N, CA): (121.7, 3.0),
}
_PROLINE_CD = ATOM14["PRO"].index("CD")
_PROLINE_LINK_ANGLES = {(_BEFORE + C, N, _PROLINE_CD): (126.0, 5.0)}

# Atoms of a torsion, its bonds (Å) and angles (degrees)
_PHI, _PSI = (_BEFORE + C, N, CA, C), (N, CA, C, NUM_SLOTS + N)
_PHI_SHAPE = (
    (BACKBONE_BOND_LENGTH["C-N"], BACKBONE_BOND_LENGTH["N-CA"], BACKBONE_BOND_LENGTH["CA-C"]),
    (BACKBONE_ANGLE["C-N-CA"], BACKBONE_ANGLE["N-CA-C"]),
)
_PSI_SHAPE = (
    (BACKBONE_BOND_LENGTH["N-CA"], BACKBONE_BOND_LENGTH["CA-C"], BACKBONE_BOND_LENGTH["C-N"]),
    (BACKBONE_ANGLE["N-CA-C"], BACKBONE_ANGLE["CA-C-N"]),
)

_FLAT = {
    "ASP": "CB CG OD1 OD2",
    "GLU": "CG CD OE1 OE2",
    "ASN": "CB CG OD1 ND2",
    "GLN": "CG CD OE1 NE2",
    "ARG": "CD NE CZ NH1 NH2",
    "HIS": "CB CG ND1 CD2 CE1 NE2",
    "PHE": "CB CG CD1 CD2 CE1 CE2 CZ",
    "TYR": "CB CG CD1 CD2 CE1 CE2 CZ OH",
    "TRP": "CB CG CD1 CD2 NE1 CE2 CE3 CZ2 CZ3 CH2",
}
"""Groups of atoms in one plane."""

_STEREO = {"ILE": "CB CA CG1 CG2", "THR": "CB CA OG1 CG2"}
"""Stereocentres beside CA: a carbon and three neighbours, of positive volume. In VAL and LEU the hand is only one of
the names of two equal groups; those stay as they are."""


def idealize(
    protein: Protein,
    linked: Bool[Tensor, "*batch pairs"] | None = None,
    sweeps: int = 240,
    hold_torsions: bool = False,
) -> Protein:
    """The same chain, or batch of chains, with every bond, angle and contact in its range, as near as it can be.

    Bonds come within 0.01 Å and angles within 2 degrees of Engh & Huber's values (N-CA-C: 4), aromatic and other flat
    groups into their planes, omega to within 10 degrees of cis or trans, whichever is nearer; CA, ILE CB and THR CB are
    left-handed as in L-amino acids; heavy atoms more than three bonds apart are pushed out of clashes (see
    `metrics.clashes`), after residues that lie on one another were moved apart as a whole (`ophio.overlaps`). Missing atoms stay as they are, and so do those with coordinates that are not finite.

    Equivariant to rotation and translation; the chains of a batch and their padding do not feel each other. Constant to
    autograd, and repeatable bit for bit on a CPU, where 100 residues take about 0.1 s on one core, half of that in a
    batch. How far the atoms moved: `metrics.all_atom_rmsd` of the two.

    Args:
        linked: whether residues i and i + 1 are to be bonded (pairs = L - 1); default: where their CA are at most 5 Å
            apart.
        sweeps: how often every atom is corrected; 0 returns the input.
        hold_torsions: keep phi and psi within 20 degrees of those of the start, or of the nearest usual ones where those are
            unusual (`metrics.ramachandran`): what makes way then is more than the local shape of the backbone.
    """
    if protein.residue_type.numel() == 0:
        return protein
    with torch.no_grad(), torch.autocast(protein.positions.device.type, enabled=False):
        dtype = torch.promote_types(protein.positions.dtype, torch.float32)
        whole = protein.replace(positions=protein.positions.to(dtype))
        start = separate_residues(whole, linked).positions if sweeps else whole.positions
        present = protein.atom_mask & start.isfinite().all(-1)
        if linked is None:
            linked = safe_norm(start[..., 1:, CA, :] - start[..., :-1, CA, :]) <= LONGEST_LINK
        after_link = torch.nn.functional.pad(linked, (1, 0))
        positions = rearrange(start, "... l a xyz -> (... l a) xyz")
        chains = (rearrange(t, "... l -> (...) l") for t in (protein.residue_type, after_link))
        held = _held_torsions(whole, present, linked) if hold_torsions else ()
        positions = _relax(positions, present.flatten(), *chains, sweeps, held).reshape(start.shape)
    return protein.replace(positions=positions.to(protein.positions.dtype))


# ------------------------------------------------------------------- ranges, of atoms numbered through the whole batch


@dataclass(frozen=True)
class _Ranges:
    """A distance or volume of each of k groups of atoms, and the range it has to be in (Å or Å³)."""

    atoms: Int[Tensor, "k arity"]
    low: Float[Tensor, "k"]
    high: Float[Tensor, "k"]

    def __add__(self, other: "_Ranges") -> "_Ranges":
        pairs = zip((self.atoms, self.low, self.high), (other.atoms, other.low, other.high), strict=True)
        return _Ranges(*map(torch.cat, pairs))

    @cached_property
    def by_place(self) -> Int[Tensor, "_"]:
        """First atoms of all groups, then the second ones, and so on."""
        return self.atoms.T.flatten()

    def excess(self, value: Float[Tensor, "k"]) -> Float[Tensor, "k"]:
        return value - torch.minimum(torch.maximum(value, self.low), self.high)


def _relax(
    x: Float[Tensor, "atoms 3"],
    present: Bool[Tensor, "atoms"],
    residue_type: Int[Tensor, "chains L"],
    after_link: Bool[Tensor, "chains L"],
    sweeps: int,
    held: Sequence[_Ranges] = (),
) -> Float[Tensor, "atoms 3"]:
    """Every atom goes by the mean of the moves that its ranges ask for, with momentum."""
    geometry, volumes = (
        _of_type(table, residue_type.flatten(), present, after_link.flatten(), x.dtype)
        for table in (_DISTANCES, _VOLUMES)
    )
    if held:
        geometry, volumes = geometry + held[0], volumes + held[1]
    uses = torch.stack([ranges.atoms.flatten().bincount(minlength=len(x)) for ranges in (geometry, volumes)]).sum(0)
    share = RELAXATION / uses.clamp(min=1).to(x.dtype)[:, None]
    step, neighbours = torch.zeros_like(x), _Neighbours(x, present, residue_type)
    pushing, force = (PUSHING_HELD, PUSH_HELD) if held else (PUSHING, PUSH)
    for sweep in range(sweeps):
        push = sweep < pushing * sweeps
        if sweep % CONTACT_SWEEPS == 0 or sweep == math.ceil(pushing * sweeps):
            contacts = neighbours.contacts(x, PUSH_MARGIN if push else CLASH_MARGIN)
        pushes = (force if push else HOLD) * _distance_moves(x, contacts)
        moves = _distance_moves(x, geometry) + _volume_moves(x, volumes) + pushes
        step = share * moves + MOMENTUM * step
        x = x + step
    return x


def _held_torsions(
    protein: Protein, present: Bool[Tensor, "*batch L 14"], linked: Bool[Tensor, "*batch pairs"]
) -> tuple[_Ranges, _Ranges]:
    """Of phi and psi: the distance of the outer two atoms, which fixes a torsion up to its sign, and the volume of all four."""
    x = protein.positions
    torsions, exist = backbone_torsions(x, present, linked)
    torsions = usual_torsions(torsions[..., :2], protein.residue_type)
    # the number of each residue's first atom
    first = NUM_SLOTS * torch.arange(exist[..., 0].numel(), device=x.device)
    tolerance = math.radians(TORSION_TOLERANCE)
    around = torch.linspace(-tolerance, tolerance, 9, dtype=x.dtype, device=x.device)
    distances, volumes = [], []
    for k, (slots, shape) in enumerate(((_PHI, _PHI_SHAPE), (_PSI, _PSI_SHAPE))):
        there = exist[..., k].flatten()
        atoms = first[there, None] + torch.tensor(slots, device=x.device)
        distance, volume = _of_torsion(torsions[..., k].flatten()[there, None] + around, *shape)
        low, high = distance.amin(-1) - BOND_TOLERANCE, distance.amax(-1) + BOND_TOLERANCE
        distances.append(_Ranges(atoms[:, [0, 3]], low, high))
        volumes.append(_Ranges(atoms, volume.amin(-1), volume.amax(-1)))
    return distances[0] + distances[1], volumes[0] + volumes[1]


def _of_torsion(
    torsion: Float[Tensor, "*batch"], bonds: tuple[float, float, float], angles: tuple[float, float]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Distance (Å) of the ends of a chain of three bonds (Å) with two angles (degrees) and a torsion, and its volume (Å³)."""
    a, b, c = bonds
    (cos_ab, sin_ab), (cos_bc, sin_bc) = (
        (math.cos(math.radians(size)), math.sin(math.radians(size))) for size in angles
    )
    straight = a * a + b * b + c * c - 2 * a * b * cos_ab - 2 * b * c * cos_bc + 2 * a * c * cos_ab * cos_bc
    bent = a * c * sin_ab * sin_bc
    return (straight - 2 * bent * torsion.cos()).sqrt(), b * bent * torsion.sin()


def _distance_moves(x: Float[Tensor, "atoms 3"], ranges: _Ranges) -> Float[Tensor, "atoms 3"]:
    """Both atoms go half of the way."""
    count, index = len(ranges.atoms), ranges.by_place
    ends = x.index_select(0, index)
    vector = ends[count:] - ends[:count]
    length = torch.linalg.vector_norm(vector, dim=-1).clamp(min=MIN_DISTANCE)
    move = (0.5 * ranges.excess(length) / length)[:, None] * vector
    return torch.zeros_like(x).index_add_(0, index, torch.cat([move, -move]))


def _volume_moves(x: Float[Tensor, "atoms 3"], ranges: _Ranges) -> Float[Tensor, "atoms 3"]:
    """Volume of the parallelepiped of a, b, c, d: (b - a) x (c - a) . (d - a). All go along its gradient."""
    first, *others = x.index_select(0, ranges.by_place).chunk(4)
    u, v, w = (atom - first for atom in others)
    gradients = [torch.linalg.cross(*sides) for sides in ((v, w), (w, u), (u, v))]
    gradient = torch.stack([-sum(gradients), *gradients])
    square = gradient.square().sum((0, -1)).clamp(min=MIN_GRADIENT)
    move = -(ranges.excess((u * gradients[0]).sum(-1)) / square)[:, None] * gradient
    return torch.zeros_like(x).index_add_(0, ranges.by_place, move.flatten(0, 1))


class _Neighbours:
    """Pairs of atoms of one chain that may clash, remembered until one of its atoms has gone half of `SKIN` (Verlet 1967)."""

    def __init__(
        self, x: Float[Tensor, "atoms 3"], present: Bool[Tensor, "atoms"], residue_type: Int[Tensor, "chains L"]
    ):
        self.kind, self.chains = residue_type.flatten(), len(residue_type)
        self.atoms = [part.nonzero()[:, 0] + k * len(part) for k, part in enumerate(present.chunk(self.chains))]
        self.known = [self._pairs(x, atoms) for atoms in self.atoms]  # of each chain: pairs and their limits
        self.seen = x.clone()

    def contacts(self, x: Float[Tensor, "atoms 3"], margin: float) -> _Ranges:
        """Pairs up to `CONTACT_REACH` beyond 0.8 of the sum of their radii, from there on; those closer, a margin farther."""
        far = (safe_norm(x - self.seen) > 0.5 * SKIN).view(self.chains, -1).any(-1)
        for k in far.nonzero()[:, 0].tolist():
            self.known[k] = self._pairs(x, self.atoms[k])
            self.seen[self.atoms[k]] = x[self.atoms[k]]
        pairs, limit = (torch.cat(parts) for parts in zip(*self.known, strict=True))
        distance = safe_norm(x[pairs[:, 0]] - x[pairs[:, 1]])
        near = distance < limit + CONTACT_REACH
        pairs, limit, distance = pairs[near], limit[near], distance[near]
        low = limit + torch.where(distance < limit, margin, CLASH_MARGIN)
        return _Ranges(pairs, low, torch.full_like(low, math.inf))

    def _pairs(
        self, x: Float[Tensor, "atoms 3"], atoms: Int[Tensor, "n"]
    ) -> tuple[Int[Tensor, "k 2"], Float[Tensor, "k"]]:
        i, j = close_pairs(x[atoms], 2 * OVERLAP * max(VDW_RADIUS.values()) + CONTACT_REACH + SKIN)
        pairs = torch.stack([atoms[i], atoms[j]], -1)
        residue, slot = pairs // NUM_SLOTS, pairs % NUM_SLOTS
        kind = self.kind[residue]
        apart = ~_may_touch(residue, slot, kind)
        return pairs[apart], OVERLAP * vdw_radii().to(x)[kind[apart], slot[apart]].sum(-1)


def _may_touch(residue: Int[Tensor, "k 2"], slot: Int[Tensor, "k 2"], kind: Int[Tensor, "k 2"]) -> Bool[Tensor, "k"]:
    """Pairs at most three bonds apart, of consecutive backbones, or of two SG: what `metrics.clashes` leaves out."""
    (first, second), (a, b) = kind.unbind(-1), slot.unbind(-1)
    hops = _HOPS.to(kind.device)
    apart = residue[:, 1] - residue[:, 0]
    across = hops[first, a, C] + 1 + hops[second, N, b]
    bonds = torch.where(apart == 0, hops[first, a, b], across)
    sulfur = (kind == TYPE_OF["CYS"]) & (slot == ATOM14["CYS"].index("SG"))
    near = (bonds <= CLOSE_BONDS) | (slot < CB).all(-1)
    return ((apart <= 1) & near) | sulfur.all(-1)


# ----------------------------------------------------------------------------------------------- tables by residue type

_Row = tuple[tuple[int, ...], float, float]
"""Slots, low, high. Slots of the residue before are negative."""


@dataclass(frozen=True)
class _Table:
    slots: Int[Tensor, "21 n arity"]
    exists: Bool[Tensor, "21 n"]
    low: Float[Tensor, "21 n"]
    high: Float[Tensor, "21 n"]

    @classmethod
    def of(cls, rows: list[list[_Row]]) -> "_Table":
        slots, exists = slot_table([[row[0] for row in kind] for kind in rows])
        low, high = torch.zeros(2, *exists.shape, dtype=torch.float64)
        for kind, of_kind in enumerate(rows):
            for k, (_, *ends) in enumerate(of_kind):
                low[kind, k], high[kind, k] = ends
        return cls(slots, exists, low, high)


def _of_type(
    table: _Table,
    residue_type: Int[Tensor, "residues"],
    present: Bool[Tensor, "atoms"],
    after_link: Bool[Tensor, "residues"],
    dtype: torch.dtype,
) -> _Ranges:
    """The ranges of residues whose atoms are all there and, if they reach back, bonded to the residue before."""
    device = residue_type.device
    slots, exists, low, high = (t.to(device)[residue_type] for t in (table.slots, table.exists, table.low, table.high))
    atoms = NUM_SLOTS * torch.arange(len(residue_type), device=device)[:, None, None] + slots
    exists = exists & present[atoms.clamp(min=0)].all(-1) & (after_link[:, None] | (slots >= 0).all(-1))
    return _Ranges(atoms[exists], low[exists].to(dtype), high[exists].to(dtype))


def _distance_rows(name: str) -> list[_Row]:
    """Bonds, and the distances across angles, of a residue and its link to the one before."""
    lengths = dict(zip(BONDS[name], map(float, _LENGTHS[name].split()), strict=True))
    lengths[_BEFORE + C, N] = BACKBONE_BOND_LENGTH["C-N"]
    sizes = {
        ends: (float(size), WIDE_ANGLES.get(ends, ANGLE_TOLERANCE))
        for ends, size in zip(ANGLES[name], _SIZES[name].split(), strict=True)
    }
    sizes |= _LINK_ANGLES | (_PROLINE_LINK_ANGLES if name == "PRO" else {})
    rows: list[_Row] = [(bond, length - BOND_TOLERANCE, length + BOND_TOLERANCE) for bond, length in lengths.items()]
    sides = lengths | {
        (_BEFORE + CA, _BEFORE + C): BACKBONE_BOND_LENGTH["CA-C"],
        (_BEFORE + O, _BEFORE + C): BACKBONE_BOND_LENGTH["C-O"],
    }
    sides |= {(b, a): length for (a, b), length in sides.items()}
    for (a, b, c), (size, tolerance) in sizes.items():
        low, high = (_third_side(sides[a, b], sides[b, c], size + sign * tolerance) for sign in (-1, 1))
        rows.append(((a, c), low, high))
    return rows


def _third_side(a: float, b: float, degrees: float) -> float:
    return math.sqrt(a * a + b * b - 2 * a * b * math.cos(math.radians(degrees)))


def _volume_rows(name: str) -> list[_Row]:
    """Hands, planes and omega of a residue and its link to the one before."""
    before = [_BEFORE + slot for slot in (CA, C, O)]
    rows: list[_Row] = [((before[1], before[0], before[2], N), -FLATNESS, FLATNESS)]
    rows.append(((*before[:2], N, CA), -OMEGA_FLATNESS, OMEGA_FLATNESS))
    slot = {atom: k for k, atom in enumerate(ATOM14[name])}
    centres: list[tuple[int, ...]] = [(CA, N, C, CB)] if "CB" in slot else []
    centres += [tuple(slot[atom] for atom in _STEREO[name].split())] if name in _STEREO else []
    flat = [slot[atom] for atom in _FLAT.get(name, "").split()]
    planes = [p for p in permutations(flat, 4) if p[0] < p[3] and all(_bonded(name, *pair) for pair in pairwise(p))]
    forks = ((atom, *(other for other in flat if _bonded(name, atom, other))) for atom in flat)
    planes += [fork for fork in forks if len(fork) == 4]
    return rows + [(c, HANDEDNESS, math.inf) for c in centres] + [(p, -FLATNESS, FLATNESS) for p in planes]


def _bonded(name: str, a: int, b: int) -> bool:
    return (a, b) in BONDS[name] or (b, a) in BONDS[name]


def _count_hops() -> Int[Tensor, "21 14 14"]:
    """Number of bonds between two atoms of a residue."""
    hops = torch.full((NUM_TYPES + 1, NUM_SLOTS, NUM_SLOTS), FAR)
    hops.diagonal(dim1=1, dim2=2).zero_()
    for kind, name in enumerate(RESIDUE_NAMES):
        for a, b in BONDS[name]:
            hops[kind, a, b] = hops[kind, b, a] = 1
    for via in range(NUM_SLOTS):
        hops = torch.minimum(hops, hops[:, :, via, None] + hops[:, None, via])
    return hops


_DISTANCES = _Table.of([_distance_rows(name) for name in RESIDUE_NAMES])
_VOLUMES = _Table.of([_volume_rows(name) for name in RESIDUE_NAMES])
_HOPS = _count_hops()
