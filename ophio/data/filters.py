"""Which chains enter a corpus. A filter gives the reason to reject a chain, as "category: detail", or None."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ophio.constants import (
    ATOM14,
    BACKBONE_BOND_LENGTH,
    CA,
    CHAIN_BREAK_CA,
    CHAIN_BREAK_CN,
    NUM_SLOTS,
    RESIDUE_NAMES,
    C,
    N,
)
from ophio.data.entry import Entry
from ophio.protein import Protein

CA_STEP = (3.4, 4.2)  # Å between consecutive CA across a trans peptide bond
CA_STEP_CIS = (2.7, 3.3)  # Å across a cis peptide bond
ATOMS_OF_TYPE = torch.tensor([len(ATOM14[name]) for name in RESIDUE_NAMES] + [NUM_SLOTS])


class Breaks(str, Enum):
    """What becomes of a chain with breaks, or with residues that have no CA or no standard type."""

    cut = "cut"  # the longest unbroken piece stays
    reject = "reject"
    keep = "keep"


@dataclass  # not frozen: OmegaConf checks values against it
class Filters:
    """Limits for `accept`. None, and empty lists of names, mean no limit."""

    min_length: int = 30
    max_length: int | None = None
    min_completeness: float = 0.8  # heavy atoms present / expected for the sequence
    min_backbone: float = 0.95  # N, CA, C and O present / expected
    max_bond_deviation: float | None = 0.1  # Å, mean over N-CA, CA-C and C-N
    max_bad_steps: float | None = 0.02  # fraction of CA-CA distances that are neither trans nor cis
    breaks: Breaks = Breaks.cut
    origins: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)


def accept(entry: Entry, filters: Filters) -> Entry | str:
    """The entry (cut at its chain breaks, if so chosen), or the reason why it is rejected."""
    reason = unwanted(entry, filters.origins, filters.splits)
    if reason is None and filters.breaks == Breaks.reject:
        reason = broken(entry.protein)
    if reason is not None:
        return reason
    protein = longest_piece(entry.protein) if filters.breaks == Breaks.cut else entry.protein
    reason = (
        wrong_length(protein, filters.min_length, filters.max_length)
        or incomplete(protein, filters.min_completeness, filters.min_backbone)
        or bad_geometry(protein, filters.max_bond_deviation, filters.max_bad_steps)
    )
    return reason or replace(entry, protein=protein)


def unwanted(entry: Entry, origins: Sequence[str], splits: Sequence[str]) -> str | None:
    """Why an entry is left out by where it comes from; None: it is not. Empty `origins` or `splits`: any."""
    if origins and entry.origin not in origins:
        return f"origin: {entry.origin}"
    if splits and entry.split not in splits:
        return f"split: {entry.split}"
    return None


def wrong_length(protein: Protein, min_length: int, max_length: int | None) -> str | None:
    """Why a chain is left out by its length in residues; None: it is not."""
    if protein.num_residues < min_length:
        return f"length: {protein.num_residues} residues in one piece, below {min_length}"
    if max_length is not None and protein.num_residues > max_length:
        return f"length: {protein.num_residues} residues, above {max_length}"
    return None


def incomplete(protein: Protein, min_completeness: float, min_backbone: float) -> str | None:
    """Why a chain is left out by its share of atoms that are there, 0-1; None: it is not."""
    backbone = protein.atom_mask[:, :4].float().mean().item()
    if backbone < min_backbone:
        return f"completeness: {backbone:.2f} of the backbone atoms, below {min_backbone}"
    atoms = protein.atom_mask.sum().item() / ATOMS_OF_TYPE[protein.residue_type].sum().item()
    if atoms < min_completeness:
        return f"completeness: {atoms:.2f} of the heavy atoms, below {min_completeness}"
    return None


def bad_geometry(protein: Protein, max_bond_deviation: float | None, max_bad_steps: float | None) -> str | None:
    """Bonds and CA-CA distances are looked at only where both atoms are present and the chain is unbroken."""
    bonds = bond_deviation(protein)
    if max_bond_deviation is not None and not bonds <= max_bond_deviation:
        return f"geometry: backbone bonds are {bonds:.2f} Å off on average, above {max_bond_deviation}"
    steps = bad_step_fraction(protein)
    if max_bad_steps is not None and not steps <= max_bad_steps:
        return f"geometry: {steps:.2f} of the CA-CA distances are impossible, above {max_bad_steps}"
    return None


def broken(protein: Protein) -> str | None:
    """Where a chain is interrupted, by a masked residue or a chain break; None: nowhere."""
    if not protein.residue_mask.all():
        index = int((~protein.residue_mask).nonzero()[0])
        return f"chain break: residue {int(protein.residue_number[index])} has no CA or an unknown type"
    if chain_breaks(protein).any():
        index = int(chain_breaks(protein).nonzero()[0])
        return f"chain break: after residue {int(protein.residue_number[index])}"
    return None


def longest_piece(protein: Protein) -> Protein:
    """The longest run of residues that have a CA and a known type, with no chain break inside."""
    usable = protein.residue_mask
    follows = usable[1:] & usable[:-1] & ~chain_breaks(protein)
    starts = torch.cat([usable[:1], usable[1:] & ~follows]).nonzero()[:, 0]
    ends = torch.cat([usable[:-1] & ~follows, usable[-1:]]).nonzero()[:, 0] + 1
    if len(starts) == 0:
        return protein.crop(0, 0)
    best = int((ends - starts).argmax())
    return protein.crop(int(starts[best]), int(ends[best]))


def chain_breaks(protein: Protein) -> Bool[Tensor, " steps"]:
    """True at k where residues k and k + 1 are not bonded; atoms that are missing break nothing."""
    ca, ca_known = _distance(protein, CA, CA, step=1)
    cn, cn_known = _distance(protein, C, N, step=1)
    return (ca > CHAIN_BREAK_CA) & ca_known | (cn > CHAIN_BREAK_CN) & cn_known


def bond_deviation(protein: Protein) -> float:
    """Mean deviation, in Å, of the backbone bonds from Engh & Huber; NaN without any bond."""
    bonds = {"N-CA": (N, CA, 0), "CA-C": (CA, C, 0), "C-N": (C, N, 1)}
    deviations = []
    for name, (first, second, step) in bonds.items():
        length, known = _distance(protein, first, second, step)
        if step:
            known = known & ~chain_breaks(protein)
        deviations.append((length - BACKBONE_BOND_LENGTH[name]).abs()[known])
    return torch.cat(deviations).mean().item()


def bad_step_fraction(protein: Protein) -> float:
    """Fraction of CA-CA distances of consecutive residues that fit neither a trans nor a cis peptide bond."""
    distance, known = _distance(protein, CA, CA, step=1)
    known = known & ~chain_breaks(protein)
    fits = [(distance >= low) & (distance <= high) for low, high in (CA_STEP, CA_STEP_CIS)]
    return (~(fits[0] | fits[1]) & known).sum().item() / max(1, known.sum().item())


def _distance(
    protein: Protein, first: int, second: int, step: int
) -> tuple[Float[Tensor, " pairs"], Bool[Tensor, " pairs"]]:
    """From atom `first` of a residue to atom `second` of the one `step` further on, and whether both are present."""
    count = protein.num_residues - step
    here, there = slice(0, max(count, 0)), slice(step, None)
    distance = (protein.positions[here, first] - protein.positions[there, second]).norm(dim=-1)
    return distance, protein.atom_mask[here, first] & protein.atom_mask[there, second]
