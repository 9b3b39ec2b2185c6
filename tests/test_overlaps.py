"""Residues that lie on one another are moved apart as a whole."""

import pytest
import torch
from adk import CLOSED, OPEN, read

from ophio.geometry import random_rotation
from ophio.overlaps import separate_residues
from ophio.protein import Protein, stack


@pytest.fixture(scope="module")
def native() -> Protein:
    return read(OPEN)[1]


def run_through(protein: Protein) -> Protein:
    """The last 30 residues are laid on residues 60 to 90, one and a half Å beside them."""
    positions = protein.positions.clone()
    target = positions[60:90, 1].mean(0) + torch.tensor([1.5, 0.0, 0.0])
    tail = slice(protein.num_residues - 30, protein.num_residues)
    positions[tail] += target - positions[tail, 1].mean(0)
    return protein.with_positions(positions)


def closest(protein: Protein) -> float:
    node = torch.arange(protein.num_residues)
    apart = (node[:, None] - node).abs() > 2
    return float(torch.cdist(protein.ca, protein.ca)[apart].min())


@pytest.mark.parametrize("name", [OPEN, CLOSED])
def test_a_natural_structure_stays(name):
    protein = read(name)[1]
    moved = (separate_residues(protein).positions - protein.positions).norm(dim=-1)
    assert moved.max() < 0.5 and moved.square().mean().sqrt() < 0.05


def test_overlapping_stretches_are_moved_apart_and_keep_their_shape(native):
    wrong = run_through(native)
    right = separate_residues(wrong)
    assert closest(wrong) < 2.0 and closest(right) > 2.5
    for hops in (2, 3, 4):
        lengths = [(p.ca[hops:180] - p.ca[: 180 - hops]).norm(dim=-1) for p in (wrong, right)]
        assert (lengths[0] - lengths[1]).abs().mean() < 0.5


def test_atoms_go_with_their_residue(native):
    wrong = run_through(native)
    shift = separate_residues(wrong).positions - wrong.positions
    per_atom = shift - shift[:, 1:2]
    assert per_atom[wrong.atom_mask].abs().max() < 1e-4 and shift[~wrong.atom_mask].abs().max() == 0


def test_is_equivariant_and_batches_do_not_mix(native):
    wrong = run_through(native).to(torch.float64)
    rotation = random_rotation((), torch.Generator().manual_seed(1), torch.float64)
    turned = wrong.with_positions(wrong.rotate(rotation).positions + 7.0)
    expected = separate_residues(wrong).positions @ rotation.T + 7.0
    assert (separate_residues(turned).positions - expected)[wrong.atom_mask].abs().max() < 1e-6
    batch = separate_residues(stack([wrong, wrong.crop(0, 100)]))
    assert torch.allclose(batch.positions[0], separate_residues(wrong).positions)
    assert torch.allclose(batch.positions[1, :100], separate_residues(wrong.crop(0, 100)).positions)
