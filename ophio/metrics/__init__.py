"""Agreement of two structures, and validity of one. Every function returns one value per protein, padding ignored;
only secondary structure is that of one chain."""

from ophio.metrics.clashes import ca_clashes, clashes
from ophio.metrics.lddt import ca_lddt, lddt
from ophio.metrics.ramachandran import ramachandran_favoured, ramachandran_outliers
from ophio.metrics.report import reconstruction_report, residue_accuracy, validity_report
from ophio.metrics.rmsd import all_atom_rmsd, backbone_rmsd, best_order, ca_rmsd
from ophio.metrics.secondary_structure import helix_strand_content, secondary_structure
from ophio.metrics.shape import COMPACT_EXPONENT, radius_of_gyration
from ophio.metrics.similarity import Similarity, gdt_ha, gdt_ts, similarity, tm_score
from ophio.metrics.validity import (
    angle_outliers,
    backbone_angles,
    backbone_bonds,
    bond_outliers,
    chain_breaks,
    chain_links,
    chirality_errors,
    is_mirrored,
    left_handed_helices,
    omega_outliers,
    side_chain_bond_rmsd,
    valid_residues,
)

__all__ = [
    "COMPACT_EXPONENT",
    "Similarity",
    "all_atom_rmsd",
    "angle_outliers",
    "backbone_angles",
    "backbone_bonds",
    "backbone_rmsd",
    "best_order",
    "bond_outliers",
    "ca_clashes",
    "ca_lddt",
    "ca_rmsd",
    "chain_breaks",
    "chain_links",
    "chirality_errors",
    "clashes",
    "gdt_ha",
    "gdt_ts",
    "helix_strand_content",
    "is_mirrored",
    "lddt",
    "left_handed_helices",
    "omega_outliers",
    "radius_of_gyration",
    "ramachandran_favoured",
    "ramachandran_outliers",
    "reconstruction_report",
    "residue_accuracy",
    "secondary_structure",
    "side_chain_bond_rmsd",
    "similarity",
    "tm_score",
    "valid_residues",
    "validity_report",
]
