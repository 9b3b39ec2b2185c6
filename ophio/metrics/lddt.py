"""Local distance difference test: how well distances are kept, without superposition.

Mariani et al. 2013, Bioinformatics 29:2722.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ophio.constants import CA, NUM_SLOTS
from ophio.metrics.atoms import swappable
from ophio.residue import pair_mask, swap_pairs

INCLUSION_RADIUS = 15.0  # Å, in the true structure
TOLERANCES = (0.5, 1.0, 2.0, 4.0)  # Å
CHUNK = 2**22  # distances held at once: bounds the memory for long chains


@torch.no_grad()
def lddt(
    predicted: Float[Tensor, "*batch L 14 3"],
    true: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
    residue_type: Int[Tensor, "*batch L"] | None = None,
) -> Float[Tensor, "*batch"]:
    """All-atom lDDT, 0..1: share of the distances between atoms of different residues that are kept.

    The mean over the tolerances 0.5, 1, 2 and 4 Å, over the pairs closer than 15 Å in `true`. Where `residue_type` (of
    the true structure) is given, interchangeable atoms are named whichever way agrees better with all other atoms, as
    published; otherwise names are taken as they are. NaN for a protein without any such pair.
    """
    x, y, mask = (t.reshape(-1, *t.shape[atom_mask.dim() - 2 :]) for t in (predicted, true, atom_mask))
    if residue_type is not None:
        types = residue_type.reshape(-1, residue_type.shape[-1])
        x = torch.stack([_best_order(*chain) for chain in zip(x, y, mask, types, strict=True)])
    values = [_score(_select(*chain)) for chain in zip(x, y, mask, strict=True)]
    return torch.stack(values).reshape(atom_mask.shape[:-2])


def ca_lddt(
    predicted: Float[Tensor, "*batch L 14 3"],
    true: Float[Tensor, "*batch L 14 3"],
    atom_mask: Bool[Tensor, "*batch L 14"],
) -> Float[Tensor, "*batch"]:
    """lDDT of the CA atoms."""
    return lddt(predicted, true, atom_mask & (torch.arange(NUM_SLOTS, device=atom_mask.device) == CA))


class _Atoms(NamedTuple):
    predicted: Float[Tensor, "n 3"]
    true: Float[Tensor, "n 3"]
    residue: Int[Tensor, "n"]


def _select(predicted: Float[Tensor, "L 14 3"], true: Float[Tensor, "L 14 3"], mask: Bool[Tensor, "L 14"]) -> _Atoms:
    return _Atoms(predicted[mask], true[mask], mask.nonzero()[:, 0])


def _score(atoms: _Atoms) -> Float[Tensor, ""]:
    kept, contacts = _kept(atoms, atoms)
    return kept.sum().to(atoms.true.dtype) / (contacts.sum() * len(TOLERANCES))


def _best_order(
    predicted: Float[Tensor, "L 14 3"],
    true: Float[Tensor, "L 14 3"],
    mask: Bool[Tensor, "L 14"],
    residue_type: Int[Tensor, "L"],
) -> Float[Tensor, "L 14 3"]:
    """Predicted atoms of one protein, interchangeable ones swapped where that keeps more distances to the others."""
    pairs = pair_mask(residue_type)
    ambiguous = pairs & swappable(mask, residue_type)[:, None]
    others = _select(predicted, true, mask & ~pairs)
    swapped = swap_pairs(predicted, residue_type)
    gain = predicted.new_zeros(len(predicted), dtype=torch.long)
    for sign, order in ((1, swapped), (-1, predicted)):
        rows = _select(order, true, ambiguous)
        gain.index_add_(0, rows.residue, sign * _kept(rows, others)[0])
    return torch.where((gain > 0)[:, None, None], swapped, predicted)


def _kept(rows: _Atoms, columns: _Atoms) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
    """Per row atom: contacts with column atoms of other residues, and how many are kept, summed over the tolerances."""
    size = max(1, CHUNK // max(1, len(columns.residue)))
    parts = [_kept_chunk(_Atoms(*chunk), columns) for chunk in zip(*(t.split(size) for t in rows), strict=True)]
    kept, contacts = (torch.cat(counts) for counts in zip(*parts, strict=True))
    return kept, contacts


def _kept_chunk(rows: _Atoms, columns: _Atoms) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
    # cdist loses digits far from the origin
    true_centre, predicted_centre = columns.true.mean(0), columns.predicted.mean(0)
    distance = torch.cdist(rows.true - true_centre, columns.true - true_centre)
    contact = (distance < INCLUSION_RADIUS) & (rows.residue[:, None] != columns.residue)
    error = (torch.cdist(rows.predicted - predicted_centre, columns.predicted - predicted_centre) - distance).abs()
    error = error.masked_fill(~contact, torch.inf)
    return sum((error < tolerance).sum(-1) for tolerance in TOLERANCES), contact.sum(-1)
