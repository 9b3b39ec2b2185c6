"""Fraction of residues of sound backbone geometry."""

import math

import pytest
import torch
from adk import CLOSED, OPEN, read

from ophio.constants import CA, CB, C, N, O
from ophio.metrics import angle_outliers, bond_outliers, chain_links, valid_residues
from ophio.protein import Protein, empty, stack


@pytest.fixture
def kinase() -> Protein:
    return read(OPEN)[1]


def fraction(protein: Protein, linked: torch.Tensor | None = None) -> float:
    return valid_residues(protein.positions, protein.atom_mask, linked).item()


def moved(protein: Protein, residue: int, slot: int, shift: torch.Tensor) -> Protein:
    positions = protein.positions.clone()
    positions[residue, slot] += shift
    return protein.with_positions(positions)


def test_every_residue_of_a_refined_structure_is_valid():
    batch = stack([read(OPEN)[1], read(CLOSED)[1].crop(0, 100)])
    assert valid_residues(batch.positions, batch.atom_mask).tolist() == [1.0, 1.0]


def test_counts_residues_not_bonds(kinase):
    bond = kinase.positions[7, O] - kinase.positions[7, C]
    assert fraction(moved(kinase, 7, O, 0.2 * bond)) == pytest.approx(213 / 214)  # its own C-O
    shift = torch.tensor([0.0, 0.0, 2.0])
    assert fraction(moved(kinase, 50, O, shift)) == pytest.approx(213 / 214)  # C-O and CA-C-O: one residue all the same
    assert fraction(moved(kinase, 50, N, shift)) == pytest.approx(212 / 214)  # its own bonds, and the link before it
    assert fraction(moved(kinase, 0, N, shift)) == pytest.approx(213 / 214)
    assert fraction(moved(kinase, 50, CB, shift)) == 1.0


def test_a_bad_angle_with_good_bonds_is_invalid(kinase):
    bond = kinase.positions[30, O] - kinase.positions[30, C]
    ca = kinase.positions[30, CA] - kinase.positions[30, C]
    axis = torch.nn.functional.normalize(torch.linalg.cross(bond, ca), dim=0)
    turn = torch.linalg.matrix_exp(math.radians(15) * torch.linalg.cross(torch.eye(3), axis.expand(3, 3)))
    bent = moved(kinase, 30, O, turn @ bond - bond)
    assert bond_outliers(bent.positions, bent.atom_mask) == 0 and angle_outliers(bent.positions, bent.atom_mask) > 0
    assert fraction(bent) == pytest.approx(213 / 214)


def test_known_gaps_do_not_count(kinase):
    gap = kinase.with_positions(kinase.positions + 10.0 * (torch.arange(214) > 99)[:, None, None])
    assert fraction(gap) == pytest.approx(213 / 214)
    assert fraction(gap, chain_links(gap.positions, gap.atom_mask)) == 1.0


def test_incomplete_residues_and_padding_do_not_count(kinase):
    bad = moved(kinase, 7, C, torch.full((3,), 2.0))
    mask = kinase.atom_mask.clone()
    mask[100, O] = False
    assert fraction(bad.replace(atom_mask=mask)) == pytest.approx(212 / 213)
    assert fraction(bad.pad(250)) == fraction(bad) == pytest.approx(213 / 214)
    mask[7] = False
    assert fraction(bad.replace(atom_mask=mask)) == 1.0


def test_nothing_is_nan_and_broken_numbers_are_invalid(kinase):
    assert math.isnan(fraction(empty(4)))
    assert fraction(kinase.with_positions(torch.full_like(kinase.positions, torch.nan))) == 0.0
    assert fraction(kinase.crop(0, 1)) == 1.0


def test_agrees_with_the_outlier_fractions_on_noise(kinase):
    """A noisy chain: the fraction of valid residues lies between what its bad bonds and angles allow."""
    noise = torch.randn(kinase.positions.shape, generator=torch.Generator().manual_seed(0))
    rough = kinase.with_positions(kinase.positions + 0.03 * noise)
    bonds, angles = (f(rough.positions, rough.atom_mask).item() for f in (bond_outliers, angle_outliers))
    assert bonds > 0 and angles > 0
    # eight bonds and angles a residue: at best all bad ones share residues, at worst each has its own
    assert 1 - 4 * (bonds + angles) - 0.01 < fraction(rough) < 1 - max(bonds, angles) + 0.01
