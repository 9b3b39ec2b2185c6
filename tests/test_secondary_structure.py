import math
import warnings

import biotite.structure as struc
import numpy as np
import pytest
import torch
from adk import CLOSED, COBROTOXIN, DATA, OPEN, read

from ophio.constants import CA, UNKNOWN, C
from ophio.geometry import random_rotation
from ophio.io import read_structure
from ophio.metrics import helix_strand_content, radius_of_gyration, secondary_structure
from ophio.protein import Protein, empty, stack

DSSP = DATA / "dssp"  # chains and, one letter a residue, what DSSP makes of them
DSSP_CHAINS = ["1bvyF", "1eteA", "1h4aX", "3nbkA", "3ny7A", "3pivA", "3q4oA", "3t5gB", "4dkcA", "4gcnA"]


@pytest.fixture
def kinase() -> Protein:
    return read(OPEN)[1]


def only_ca(protein: Protein) -> Protein:
    mask = protein.atom_mask & (torch.arange(14) == CA)
    return protein.replace(atom_mask=mask, positions=protein.positions * mask[..., None])


@pytest.mark.parametrize("name", [OPEN, CLOSED, COBROTOXIN])
def test_is_what_biotite_says_of_the_whole_chain(name):
    atoms, protein = read(name)
    expected = np.select([(sse := struc.annotate_sse(atoms)) == "a", sse == "b"], ["H", "E"], "C")
    assert secondary_structure(protein) == "".join(expected)


def test_helices_and_strands_of_adenylate_kinase(kinase):
    """The core of the helices of E. coli adenylate kinase and of the strands of its central sheet."""
    letters = secondary_structure(kinase)
    assert set(letters) == {"H", "E", "C"} and len(letters) == 214
    for start, stop in [(16, 23), (32, 41), (45, 54), (61, 71), (90, 97), (162, 173), (177, 186), (203, 211)]:
        assert letters[start - 1 : stop] == "H" * (stop - start + 1)
    for start, stop in [(2, 6), (26, 29), (81, 83), (105, 109), (192, 196)]:
        assert letters[start - 1 : stop] == "E" * (stop - start + 1)
    helix, strand = helix_strand_content(kinase)
    assert helix == letters.count("H") / 214 and 0.4 < helix < 0.55
    assert strand == letters.count("E") / 214 and 0.1 < strand < 0.2


def test_agrees_with_dssp_as_far_as_methods_do():
    same, contents = [], []
    for name in DSSP_CHAINS:
        expected = (DSSP / f"{name}.pdb.dssp").read_text().split()[0].replace("-", "C")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            protein = read_structure(DSSP / f"{name}.pdb.gz")
        letters = secondary_structure(protein)
        same += [a == b for a, b in zip(letters, expected, strict=True)]
        dssp = [expected.count(kind) / len(expected) for kind in "HE"]
        contents.append([*helix_strand_content(protein), *dssp])
    helix, strand, helix_dssp, strand_dssp = np.array(contents).T
    assert np.mean(same) > 0.8
    assert np.abs(helix - helix_dssp).max() < 0.1
    assert np.corrcoef(strand, strand_dssp)[0, 1] > 0.9 and np.abs(strand - strand_dssp).max() < 0.2


def test_needs_only_ca_and_no_orientation(kinase):
    letters = secondary_structure(kinase)
    assert secondary_structure(only_ca(kinase)) == letters
    rotation = random_rotation((), torch.Generator().manual_seed(0))
    assert secondary_structure(kinase.rotate(rotation)) == letters
    assert secondary_structure(kinase.pad(220)) == letters + "C" * 6
    assert secondary_structure(kinase.to(torch.float64)) == letters


def test_nothing_runs_across_a_break(kinase):
    """Two pieces far apart read as two chains, each by itself; without the break the ends would join."""
    cut = 166  # in the middle of a helix
    apart = kinase.positions + 30.0 * (torch.arange(214) >= cut)[:, None, None]
    pieces = [secondary_structure(kinase.crop(*ends)) for ends in ((0, cut), (cut, 214))]
    assert secondary_structure(kinase)[cut - 3 : cut + 3] == "HHHHHH"
    assert secondary_structure(kinase.with_positions(apart))[cut - 1 : cut + 1] != "HH"
    assert secondary_structure(kinase.with_positions(apart)).count("H") == "".join(pieces).count("H")


def test_a_missing_ca_is_coil_and_a_gap(kinase):
    mask = kinase.atom_mask.clone()
    mask[166, CA] = False
    gap = kinase.replace(atom_mask=mask)
    letters = secondary_structure(gap)
    assert letters[166] == "C" and letters[:160] == secondary_structure(kinase)[:160]
    unknown = kinase.replace(residue_type=torch.where(torch.arange(214) == 166, UNKNOWN, kinase.residue_type))
    assert secondary_structure(unknown) == letters
    helix, _ = helix_strand_content(gap)
    assert helix == letters.count("H") / 213


@pytest.mark.parametrize("length", range(7))
def test_short_chains_are_coil(kinase, length):
    piece = kinase.crop(160, 160 + length)
    assert set(secondary_structure(piece)) <= ({"C", "H"} if length > 5 else {"C"})
    assert len(secondary_structure(piece)) == length


def test_broken_coordinates_are_coil(kinase):
    nothing = empty(20)
    assert secondary_structure(nothing) == "C" * 20
    assert all(math.isnan(content) for content in helix_strand_content(nothing))
    assert secondary_structure(kinase.with_positions(torch.full_like(kinase.positions, torch.nan))) == "C" * 214
    collapsed = kinase.with_positions(torch.zeros_like(kinase.positions))
    assert len(secondary_structure(collapsed)) == 214
    assert secondary_structure(kinase.with_positions(kinase.positions * 1e7)) == "C" * 214
    stray = kinase.positions.clone()
    stray[0], stray[1] = 1e9, torch.inf
    without = kinase.replace(residue_type=torch.where(torch.arange(214) < 2, UNKNOWN, kinase.residue_type))
    assert secondary_structure(kinase.with_positions(stray)) == secondary_structure(without)


def test_a_batch_is_refused(kinase):
    with pytest.raises(ValueError, match="unstack"):
        secondary_structure(stack([kinase, kinase]))


def test_radius_of_gyration_is_biotites(kinase):
    other = read(COBROTOXIN)[1]
    expected = []
    for protein in (kinase, other):
        atoms = struc.AtomArray(protein.num_residues)
        atoms.coord, atoms.element = protein.ca.numpy(), np.full(protein.num_residues, "C")
        expected.append(struc.gyration_radius(atoms))
    batch = stack([kinase, other])
    found = radius_of_gyration(batch.positions + 100.0, batch.atom_mask)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert radius_of_gyration(kinase.positions, kinase.atom_mask).item() == pytest.approx(expected[0], rel=1e-5)
    poisoned = batch.positions.masked_fill(~batch.atom_mask[..., None], torch.nan)
    assert radius_of_gyration(poisoned, batch.atom_mask).tolist() == pytest.approx(expected, rel=1e-4)


def test_radius_of_gyration_of_two_points_and_of_none():
    positions = torch.zeros(2, 2, 14, 3)
    positions[:, 1, CA, 0] = 6.0
    positions[:, 1, C, 0] = 1000.0
    mask = torch.zeros(2, 2, 14, dtype=torch.bool)
    mask[0, :, [CA, C]] = True
    radius = radius_of_gyration(positions, mask)
    assert radius[0] == 3.0 and radius[1].isnan()
