"""Which residues of several structures correspond: same sequences, or aligned ones cut to what they share."""

import warnings
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from biotite.sequence import ProteinSequence
from biotite.sequence.align import SubstitutionMatrix, align_optimal
from jaxtyping import Bool, Int
from torch import Tensor

from ophio.constants import CA, CB, RESIDUE_NAMES, C, N
from ophio.errors import UserError
from ophio.io import StructureWarning
from ophio.metrics.atoms import match_names
from ophio.metrics.rmsd import ca_rmsd
from ophio.metrics.validity import chain_links, chirality_errors
from ophio.protein import Protein

MIN_RESIDUES = 4
MIN_IDENTITY = 0.5  # of the residues aligned; less is another protein
GAP_PENALTY = (-10, -1)
MIRRORED = 0.5  # of the residues with a CB are D: a mirror image
MIRROR_GAIN = 0.5  # a mirror image that fits this much better than the structure itself
SAME = 0.01  # Å
LISTED = 6


def common_residues(proteins: Sequence[Protein]) -> list[Protein]:
    """The structures cut to the residues that all of them have with N, CA and C, named as in the first.

    Chains of one sequence correspond residue by residue. Others are aligned to the first: by their residue numbers where
    those agree, else by sequence (Needleman-Wunsch with BLOSUM62, ends free). Residues of another type in a later
    structure take the type of the first, with the atoms whose names both types have.

    Warns:
        StructureWarning: residues were cut or changed, a chain has a break where another has none, or two structures
            that follow each other are the same.

    Raises:
        UserError: fewer than two structures, fewer than 4 residues in common, sequences of less than 50 % identity, or a
            structure that is a mirror image.
    """
    if len(proteins) < 2:
        raise UserError(f"{len(proteins)} structure: a path needs two or more")
    for protein in proteins:
        _check_hand(protein)
    first = proteins[0]
    index = torch.stack([partners(first, protein) for protein in proteins])
    usable = torch.stack([_complete(protein)[i] & (i >= 0) for protein, i in zip(proteins, index, strict=True)])
    kept = usable.all(0)
    if kept.sum() < MIN_RESIDUES:
        names = ", ".join(protein.name for protein in proteins)
        what = f"{int(kept.sum())} residues with N, CA and C in common"
        raise UserError(f"{names}: {what}, at least {MIN_RESIDUES} are needed")
    cut = [_as(first, protein, i[kept], kept) for protein, i in zip(proteins, index, strict=True)]
    for protein, i in zip(proteins, index, strict=True):
        _tell(protein, i[kept], first, kept)
    _tell_of_gaps(cut)
    for pair in pairwise(cut):
        _compare(*pair)
    return cut


def common_links(proteins: Sequence[Protein]) -> Bool[Tensor, "pairs"]:
    """Which consecutive residues are bonded in every structure: [L - 1]."""
    return torch.stack([chain_links(protein.positions, protein.atom_mask) for protein in proteins]).all(0)


def _complete(protein: Protein) -> Bool[Tensor, "L"]:
    return protein.residue_mask & protein.atom_mask[:, [N, CA, C]].all(-1)


def partners(first: Protein, other: Protein) -> Int[Tensor, "L"]:
    """For each residue of the first chain the one of the other, or -1; see `common_residues`.

    Raises UserError where the sequences differ too much.
    """
    if first.sequence == other.sequence:
        return torch.arange(first.num_residues)
    by_number = _by_number(first, other)
    return by_number if by_number is not None else _by_sequence(first, other)


def _by_number(first: Protein, other: Protein) -> Int[Tensor, "L"] | None:
    """By number and insertion code, where all types agree and most of the shorter chain is found; else None."""
    place = {key: k for k, key in enumerate(_keys(other))}
    partner = torch.tensor([place.get(key, -1) for key in _keys(first)])
    found = partner >= 0
    same = (first.residue_type == other.residue_type[partner]) | ~found
    enough = found.sum() >= 0.8 * min(first.num_residues, other.num_residues)
    return partner if bool(same.all()) and bool(enough) else None


def _keys(protein: Protein) -> list[tuple[int, int]]:
    return list(zip(protein.residue_number.tolist(), protein.insertion_code.tolist(), strict=True))


def _by_sequence(first: Protein, other: Protein) -> Int[Tensor, "L"]:
    pair = [ProteinSequence(protein.sequence) for protein in (first, other)]
    matrix = SubstitutionMatrix.std_protein_matrix()
    trace = align_optimal(*pair, matrix, gap_penalty=GAP_PENALTY, terminal_penalty=False, max_number=1)[0].trace
    here, there = trace[(trace >= 0).all(1)].T
    same = np.array(list(first.sequence))[here] == np.array(list(other.sequence))[there]
    shorter = min(first.num_residues, other.num_residues)
    if same.sum() < MIN_IDENTITY * max(len(same), 0.5 * shorter):
        raise UserError(
            f"{first.name} and {other.name}: different sequences ({same.sum()} residues of {shorter} agree when aligned): "
            "a path needs two conformations of one protein"
        )
    partner = torch.full((first.num_residues,), -1)
    partner[torch.from_numpy(here)] = torch.from_numpy(there)
    return partner


def _as(first: Protein, protein: Protein, index: Int[Tensor, "K"], kept: Bool[Tensor, "L"]) -> Protein:
    """The residues `index` of a structure, with the types and names of those kept of the first."""
    own, model = protein.map(lambda t: t[index]), first.map(lambda t: t[kept])
    full = model.replace(atom_mask=torch.ones_like(model.atom_mask))
    positions, shared = match_names(own, full)
    return model.replace(positions=positions, atom_mask=shared, b_factor=own.b_factor * shared, name=protein.name)


def _check_hand(protein: Protein) -> None:
    with_cb = int(protein.atom_mask[:, [N, CA, C, CB]].all(-1).sum())
    wrong = int(chirality_errors(protein.positions, protein.atom_mask))
    if with_cb and wrong > MIRRORED * with_cb:
        what = f"{wrong} of {with_cb} residues with a CB are D-amino acids"
        raise UserError(f"{protein.name}: {what}: a mirror image; give the structure of the right hand")


def _compare(before: Protein, after: Protein) -> None:
    """Raises where the traces are mirror images; warns where the structures are the same."""
    both = before.atom_mask & after.atom_mask
    direct = float(ca_rmsd(after.positions, before.positions, both))
    flipped = float(ca_rmsd(after.positions * torch.tensor([1.0, 1.0, -1.0]), before.positions, both))
    if flipped < MIRROR_GAIN * direct and direct > 1.0:
        what = f"CA RMSD {direct:.2f} Å, but {flipped:.2f} Å to the mirror image"
        raise UserError(f"{before.name} and {after.name}: {what}: one of them is mirrored")
    if direct < SAME:
        _warn(f"{before.name} and {after.name}: the same structure (CA RMSD {direct:.3f} Å): there is no way to go")


def _tell(protein: Protein, index: Int[Tensor, "K"], first: Protein, kept: Bool[Tensor, "L"]) -> None:
    """What was cut and what was changed."""
    lost = torch.ones(protein.num_residues, dtype=torch.bool).index_fill(0, index, False).nonzero()[:, 0]
    if len(lost):
        why = "not in all structures with N, CA and C"
        _warn(f"{protein.name}: {len(lost)} of {protein.num_residues} residues cut, {why}: {_listed(protein, lost)}")
    other = index[protein.residue_type[index] != first.residue_type[kept]]
    if len(other):
        what = f"{len(other)} residues are of another type than in {first.name} and were taken as there"
        _warn(f"{protein.name}: {what}: {_listed(protein, other)}")


def _tell_of_gaps(cut: Sequence[Protein]) -> None:
    gaps = (~common_links(cut)).nonzero()[:, 0]
    if len(gaps):
        _warn(f"{len(gaps)} gap(s) in the chain, where the path is not bonded, after {_listed(cut[0], gaps)}")


def _listed(protein: Protein, index: Int[Tensor, "k"]) -> str:
    """Runs of residues: ALA 3 - GLY 7, SER 12."""
    breaks = ((index[1:] - index[:-1]) != 1).nonzero()[:, 0] + 1
    runs = torch.tensor_split(index, breaks.tolist())
    texts = [" - ".join(dict.fromkeys(_label(protein, int(k)) for k in (run[0], run[-1]))) for run in runs]
    return ", ".join(texts[:LISTED]) + (", ..." if len(texts) > LISTED else "")


def _label(protein: Protein, k: int) -> str:
    name = (*RESIDUE_NAMES, "UNK")[int(protein.residue_type[k])]
    return f"{name} {int(protein.residue_number[k])}{chr(int(protein.insertion_code[k])).strip()}"


def _warn(message: str) -> None:
    warnings.warn(message, StructureWarning, stacklevel=4)
