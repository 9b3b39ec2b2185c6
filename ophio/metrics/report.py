"""The numbers of tables and of training validation: one value per protein each, as floating-point tensors."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ophio.metrics.atoms import match_names
from ophio.metrics.clashes import ca_clashes, clashes
from ophio.metrics.lddt import ca_lddt, lddt
from ophio.metrics.ramachandran import ramachandran_favoured, ramachandran_outliers
from ophio.metrics.rmsd import all_atom_rmsd, backbone_rmsd, ca_rmsd
from ophio.metrics.similarity import similarity
from ophio.metrics.validity import (
    angle_outliers,
    bond_outliers,
    chain_breaks,
    chain_links,
    chirality_errors,
    is_mirrored,
    left_handed_helices,
    omega_outliers,
    side_chain_bond_rmsd,
)
from ophio.protein import Protein


def residue_accuracy(
    predicted_type: Int[Tensor, "*batch L"], true_type: Int[Tensor, "*batch L"], mask: Bool[Tensor, "*batch L"]
) -> Float[Tensor, "*batch"]:
    """Fraction of the masked residues whose type is right; NaN without any."""
    return ((predicted_type == true_type) & mask).sum(-1) / mask.sum(-1)


@torch.no_grad()
def validity_report(protein: Protein, linked: Bool[Tensor, "*batch pairs"] | None = None) -> dict[str, Tensor]:
    """Physical validity of structures by themselves, [*batch] each.

    Fractions: `bond_outliers`, `angle_outliers`, `rama_outliers`, `rama_favoured`, `omega_outliers`. Per 1000 atoms:
    `clashes`. Counts: `ca_clashes`, `chain_breaks`, `chirality_errors`, `left_handed_helices`. `linked` (pairs =
    L - 1) is False at the known gaps of the chain. A fraction of nothing is NaN.
    """
    protein = _full_precision(protein)
    positions, atoms, types = protein.positions, protein.atom_mask, protein.residue_type
    with torch.autocast(positions.device.type, enabled=False):
        values = {
            "bond_outliers": bond_outliers(positions, atoms, linked),
            "angle_outliers": angle_outliers(positions, atoms, linked),
            "rama_outliers": ramachandran_outliers(positions, atoms, types, linked),
            "rama_favoured": ramachandran_favoured(positions, atoms, types, linked),
            "omega_outliers": omega_outliers(positions, atoms, linked),
            "clashes": clashes(positions, atoms, types),
            "ca_clashes": ca_clashes(positions, atoms),
            "chain_breaks": chain_breaks(positions, atoms, linked),
            "chirality_errors": chirality_errors(positions, atoms),
            "left_handed_helices": left_handed_helices(positions, atoms, linked),
        }
    return {name: value.to(positions.dtype) for name, value in values.items()}


@torch.no_grad()
def reconstruction_report(predicted: Protein, true: Protein) -> dict[str, Tensor]:
    """How well `predicted` reproduces `true`, residue by residue, and its validity; [*batch] each.

    Å: `ca_rmsd`, `backbone_rmsd`, `all_atom_rmsd`, `side_chain_bond_rmsd`. 0..1: `gdt_ts`, `gdt_ha`, `tm_score` (all
    three per residue of `true`), `lddt` (all atoms), `ca_lddt`, `residue_accuracy`. 0 or 1: `mirrored`. Then
    `validity_report` of `predicted`, without the bonds over gaps in `true`.

    Residues without a CA in `true` are left out. All-atom values compare the atoms whose names both residues have: with
    a wrong residue type, few beyond the backbone. For the error of the coordinates alone, build `predicted` with the
    true types. Raises ValueError where the two differ in shape.
    """
    if predicted.residue_type.shape != true.residue_type.shape:
        ours, theirs = tuple(predicted.residue_type.shape), tuple(true.residue_type.shape)
        raise ValueError(f"the structures differ in shape, {ours} and {theirs} residues: pad or crop one of them")
    predicted, true = _full_precision(predicted), _full_precision(true)
    residues = true.residue_mask
    predicted = predicted.replace(atom_mask=predicted.atom_mask & residues[..., None])
    true = true.replace(atom_mask=true.atom_mask & residues[..., None])
    positions, shared = match_names(predicted, true)
    pair = positions, true.positions, shared
    with torch.autocast(positions.device.type, enabled=False):
        scores = similarity(*pair, target_length=residues.sum(-1))
        values = {
            "ca_rmsd": ca_rmsd(*pair),
            "backbone_rmsd": backbone_rmsd(*pair),
            "all_atom_rmsd": all_atom_rmsd(*pair, true.residue_type),
            "gdt_ts": scores.gdt_ts,
            "gdt_ha": scores.gdt_ha,
            "tm_score": scores.tm_score,
            "lddt": lddt(*pair, true.residue_type),
            "ca_lddt": ca_lddt(*pair),
            "residue_accuracy": residue_accuracy(predicted.residue_type, true.residue_type, residues),
            "side_chain_bond_rmsd": side_chain_bond_rmsd(*pair, true.residue_type),
            "mirrored": is_mirrored(*pair),
        }
    links = chain_links(true.positions, true.atom_mask)
    return {name: value.to(positions.dtype) for name, value in values.items()} | validity_report(predicted, links)


def _full_precision(protein: Protein) -> Protein:
    return protein.to(torch.promote_types(protein.positions.dtype, torch.float32))
