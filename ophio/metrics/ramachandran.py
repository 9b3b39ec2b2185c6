"""Which backbone torsions are usual, by a table counted from natural protein chains.

The table (`ramachandran.npz`, made by `benchmarks/ramachandran_table.py`) has 10-degree bins of (phi, psi) for four
classes of residues. `coverage` of a bin is the fraction of natural residues of that class that lie in denser bins. A
residue is *favoured* within the densest bins that hold 98 % and an *outlier* outside those that hold 99.95 %. The
chains were not selected by resolution here, so numbers are not comparable with MolProbity's.
"""

import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ophio.constants import TYPE_OF
from ophio.geometry import backbone_torsions

CLASSES = ("general", "glycine", "proline", "pre-proline")
BINS = 36
USUAL, FAVOURED, ALLOWED = 0.95, 0.98, 0.9995


@cache
def _table() -> Float[Tensor, "4 36 36"]:
    with np.load(Path(__file__).with_name("ramachandran.npz")) as table:
        return torch.from_numpy(table["coverage"])


def ramachandran_outliers(
    positions: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    residue_type: Int[Tensor, "*batch L"],
    linked: Bool[Tensor, "*batch L-1"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Fraction of residues outside the bins that hold 99.95 % of natural residues of their class.

    Only residues with both phi and psi count; a protein without any gets NaN.
    """
    coverage, present = ramachandran_coverage(positions, atom_mask, residue_type, linked)
    return ((coverage >= ALLOWED) & present).sum(-1).to(positions.dtype) / present.sum(-1)


def ramachandran_favoured(
    positions: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    residue_type: Int[Tensor, "*batch L"],
    linked: Bool[Tensor, "*batch L-1"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Fraction of residues within the bins that hold 98 % of natural residues of their class."""
    coverage, present = ramachandran_coverage(positions, atom_mask, residue_type, linked)
    return ((coverage < FAVOURED) & present).sum(-1).to(positions.dtype) / present.sum(-1)


def ramachandran_coverage(
    positions: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    residue_type: Int[Tensor, "*batch L"],
    linked: Bool[Tensor, "*batch L-1"] | None = None,
) -> tuple[Float[Tensor, "*batch L"], Bool[Tensor, "*batch L"]]:
    """Per residue: fraction of natural residues with more usual torsions, and whether phi and psi exist."""
    torsions, exists = backbone_torsions(positions, atom_mask, linked)
    place = _place(torsions[..., :2], residue_type)
    coverage = _table().to(positions.device, positions.dtype)[place]
    coverage = coverage.masked_fill(torsions[..., :2].isnan().any(-1), 1.0)
    return coverage, exists[..., 0] & exists[..., 1]


def usual_torsions(
    torsions: Float[Tensor, "*batch L 2"], residue_type: Int[Tensor, "*batch L"]
) -> Float[Tensor, "*batch L 2"]:
    """The same phi and psi (radians), but the middle of the nearest usual bin where theirs is none: of those that hold 95 %."""
    place = _place(torsions, residue_type)
    usual = (_table().to(torsions.device)[place] < USUAL)[..., None]
    return torch.where(usual, torsions, _nearest_usual().to(torsions)[place])


def _place(torsions: Float[Tensor, "*batch L 2"], residue_type: Int[Tensor, "*batch L"]) -> tuple[Tensor, ...]:
    """Where the table holds phi and psi: class, and bins of both."""
    return residue_class(residue_type), *torsion_bins(torsions).unbind(-1)


@cache
def _nearest_usual() -> Float[Tensor, "4 36 36 2"]:
    """Of every bin, the middle of the usual bin that is nearest."""
    index = torch.cartesian_prod(torch.arange(BINS), torch.arange(BINS))
    steps = (index[:, None] - index).abs()
    square = torch.minimum(steps, BINS - steps).square().sum(-1)  # round the torus
    far = 2 * BINS**2
    nearest = [square.masked_fill(coverage.flatten() >= USUAL, far).argmin(-1) for coverage in _table()]
    middle = (index + 0.5) * (2 * math.pi / BINS) - math.pi
    return middle[torch.stack(nearest)].view(len(CLASSES), BINS, BINS, 2)


def residue_class(residue_type: Int[Tensor, "*batch L"]) -> Int[Tensor, "*batch L"]:
    """Index into CLASSES; pre-proline is any residue but glycine and proline before a proline."""
    glycine, proline = residue_type == TYPE_OF["GLY"], residue_type == TYPE_OF["PRO"]
    before = torch.nn.functional.pad(proline[..., 1:], (0, 1)) & ~glycine & ~proline
    return glycine * 1 + proline * 2 + before * 3


def torsion_bins(torsions: Float[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
    """Index of the 10-degree bin of a torsion (radians), from -180 degrees upwards."""
    bins = torch.floor((torsions.nan_to_num(-math.pi) + math.pi) * (BINS / (2 * math.pi)))
    return bins.long().remainder(BINS)
