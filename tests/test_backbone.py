"""The decoder's last layer: covalent geometry and handedness of the backbone."""

import pytest
import torch
from adk import OPEN, read

from ophio.backbone import MAX_CB_DEVIATION, BackboneGeometry, ideal_cb
from ophio.constants import CB
from ophio.geometry import random_rotation
from ophio.metrics import angle_outliers, bond_outliers, ca_rmsd, chirality_errors
from ophio.protein import Protein


@pytest.fixture
def native() -> Protein:
    return read(OPEN)[1].to(torch.float64).map(lambda t: t[None])


def disturbed(protein: Protein, spread: float) -> Protein:
    noise = torch.randn(protein.positions.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return protein.with_positions(protein.positions + spread * noise)


def test_restores_bonds_and_angles_with_small_moves(native):
    rough = disturbed(native, 0.06)
    smooth = rough.with_positions(BackboneGeometry(10).double()(rough.positions, rough.residue_mask))
    assert bond_outliers(rough.positions, rough.atom_mask) > 0.3
    assert bond_outliers(smooth.positions, smooth.atom_mask) < 0.02
    assert angle_outliers(smooth.positions, smooth.atom_mask) < 0.5 * angle_outliers(rough.positions, rough.atom_mask)
    before, after = (ca_rmsd(p.positions, native.positions, native.atom_mask) for p in (rough, smooth))
    assert after < before


def test_native_cb_lies_where_the_backbone_puts_it(native):
    has_cb = native.atom_mask[..., CB]
    deviation = (native.positions[..., CB, :] - ideal_cb(native.positions)).norm(dim=-1)[has_cb]
    assert deviation.median() < 0.12 and (deviation < MAX_CB_DEVIATION).double().mean() > 0.95


def test_every_residue_comes_out_left_handed(native):
    mirrored_cb = native.positions.clone()
    mirrored_cb[..., CB, :] = 2 * native.ca - native.positions[..., CB, :]
    wrong = native.with_positions(mirrored_cb)
    right = wrong.with_positions(BackboneGeometry(10).double()(wrong.positions, wrong.residue_mask))
    assert chirality_errors(wrong.positions, wrong.atom_mask) > 150
    assert chirality_errors(right.positions, right.atom_mask) == 0


def test_is_equivariant_and_leaves_breaks_and_padding_alone(native):
    layer = BackboneGeometry(10).double()
    rough = disturbed(native, 0.06)
    rotation = random_rotation((), torch.Generator().manual_seed(1), torch.float64)
    moved = rough.with_positions(rough.rotate(rotation).positions + 4.0)
    expected = layer(rough.positions, rough.residue_mask) @ rotation.T + 4.0
    found = layer(moved.positions, moved.residue_mask)
    assert (found - expected)[rough.atom_mask].abs().max() < 1e-10
    padded = rough.pad(rough.num_residues + 7)
    same = layer(padded.positions, padded.residue_mask)[:, : rough.num_residues]
    assert torch.equal(same, layer(rough.positions, rough.residue_mask))
    apart = rough.positions.clone()
    apart[:, 100:] += 20.0
    halves = [layer(part, torch.ones(1, part.shape[1], dtype=torch.bool)) for part in (apart[:, :100], apart[:, 100:])]
    whole = layer(apart, torch.ones(1, apart.shape[1], dtype=torch.bool))
    assert (whole - torch.cat(halves, dim=1)).abs().max() < 1e-12


def test_no_sweeps_no_change_and_gradients_are_finite(native):
    assert torch.equal(BackboneGeometry(0)(native.positions, native.residue_mask), native.positions)
    collapsed = torch.zeros(1, 5, 14, 3, dtype=torch.float64, requires_grad=True)
    BackboneGeometry(10).double()(collapsed, torch.ones(1, 5, dtype=torch.bool)).square().sum().backward()
    assert collapsed.grad.isfinite().all()
