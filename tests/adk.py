"""Real structures for tests: PDB files of MDAnalysisTests, as biotite arrays and as Proteins of the same atoms."""

import warnings
from functools import cache
from pathlib import Path

import biotite.structure as struc
import MDAnalysisTests
import numpy as np
import torch
from biotite.structure.io import pdb

from ophio.constants import ATOM14, NUM_SLOTS, TYPE_OF
from ophio.geometry import transform
from ophio.protein import Protein

DATA = Path(MDAnalysisTests.__file__).parent / "data"
OPEN, CLOSED, COBROTOXIN = "adk_open.pdb", "adk_closed.pdb", "cobrotoxin.pdb"
_CHARMM_RESIDUES = {"HSD": "HIS", "HSE": "HIS", "HSP": "HIS"}
_CHARMM_ATOMS = {("ILE", "CD"): "CD1"} | {(name, "OT1"): "O" for name in ATOM14}


@cache
def read(name: str) -> tuple[struc.AtomArray, Protein]:
    """Heavy atoms of one chain, in the order of the file and as atom14; CHARMM names translated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        atoms = pdb.PDBFile.read(DATA / name).get_structure(model=1)
    atoms.res_name = np.array([_CHARMM_RESIDUES.get(residue, residue) for residue in atoms.res_name])
    names = zip(atoms.res_name, atoms.atom_name, strict=True)
    atoms.atom_name = np.array([_CHARMM_ATOMS.get((residue, atom), atom) for residue, atom in names])
    known = [atom in ATOM14.get(residue, []) for residue, atom in zip(atoms.res_name, atoms.atom_name, strict=True)]
    atoms = atoms[np.array(known)]
    index = struc.get_residue_positions(atoms, np.arange(atoms.array_length()))
    slot = [ATOM14[residue].index(atom) for residue, atom in zip(atoms.res_name, atoms.atom_name, strict=True)]
    positions = torch.zeros(int(index[-1]) + 1, NUM_SLOTS, 3)
    positions[index, slot] = torch.from_numpy(atoms.coord)
    mask = torch.zeros(positions.shape[:2], dtype=torch.bool)
    mask[index, slot] = True
    _, residues = struc.get_residues(atoms)
    return atoms, Protein.from_atoms(positions, mask, torch.tensor([TYPE_OF[residue] for residue in residues]), name)


def moved(protein: Protein, rotation: torch.Tensor, translation: torch.Tensor) -> Protein:
    """All atoms by one rotation and translation."""
    positions = transform(protein.positions.flatten(-3, -2), rotation, translation)
    return protein.with_positions(positions.view_as(protein.positions))
