import math

import biotite.structure as struc
import numpy as np
import pytest
import torch
from adk import CLOSED, OPEN, read

from ophio.constants import ATOM14
from ophio.geometry import (
    angle,
    backbone_torsions,
    chi_angles,
    dihedral,
    kabsch,
    pairwise_vectors,
    random_rotation,
    safe_norm,
    superimpose,
)


def points(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_safe_norm_value_and_gradient_at_zero():
    x = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    norm = safe_norm(x)
    assert norm.tolist() == pytest.approx([5.0, 0.0], abs=1e-6)
    norm.sum().backward()
    assert torch.allclose(x.grad, torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 0.0]]))
    assert safe_norm(x, dim=0, keepdim=True).shape == (1, 3)


def test_pairwise_vectors_point_from_row_to_column():
    x = points(2, 5)
    vectors = pairwise_vectors(x)
    assert vectors.shape == (2, 5, 5, 3)
    assert torch.equal(vectors[1, 0, 3], x[1, 3] - x[1, 0])


def test_angle_and_dihedral_agree_with_biotite():
    a, b, c, d = points(4, 50)
    arrays = [x.numpy() for x in (a, b, c, d)]
    assert np.allclose(angle(a, b, c), struc.angle(*arrays[:3]), atol=1e-6)
    assert np.allclose(dihedral(a, b, c, d), struc.dihedral(*arrays), atol=1e-6)


def test_dihedral_sign_is_iupac():
    a, b, c = torch.tensor([1.0, 0, 0]), torch.zeros(3), torch.tensor([0, 0, 1.0])
    # seen along b -> c (towards +z), clockwise from +x is +y
    assert dihedral(a, b, c, torch.tensor([0, 1.0, 1.0])).item() == pytest.approx(math.pi / 2)


def test_torsions_have_the_gradient_of_finite_differences():
    a, b, c, d = points(4, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(dihedral, (a, b, c, d))
    assert torch.autograd.gradcheck(angle, (a, b, c))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_degenerate_points(dtype):
    zero, one, two = (k * torch.ones(3, dtype=dtype) for k in range(3))
    apart = torch.tensor([1.0, 0.0, 0.0], dtype=dtype)
    for case in ([zero] * 4, [zero, one, two, apart], [zero, one, one, apart], [zero, apart, zero, apart]):
        x = torch.stack(case).requires_grad_()
        (dihedral(*x) + angle(*x[:3]) + safe_norm(pairwise_vectors(x)).sum()).backward()
        assert x.grad.isfinite().all() and x.grad.abs().max() < 1e3


def test_kabsch_recovers_a_rigid_motion():
    x = points(2, 3, 20)
    rotation = random_rotation((2, 3), torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = points(2, 3, seed=5)
    y = x @ rotation.mT + shift[..., None, :]
    found, translation = kabsch(x, y)
    assert torch.allclose(found, rotation, atol=1e-10)
    assert torch.allclose(translation, shift, atol=1e-10)


@pytest.mark.parametrize("case", ["mirror", "plane", "line", "one point", "all equal"])
def test_kabsch_rotation_is_proper(case):
    x = points(10)
    target = points(10, seed=1)
    mask = torch.ones(10, dtype=torch.bool)
    if case == "mirror":
        target = x * torch.tensor([1.0, 1.0, -1.0])
    if case == "plane":
        x = x * torch.tensor([1.0, 1.0, 0.0])
    if case == "line":
        x = x * torch.tensor([1.0, 0.0, 0.0])
    if case == "one point":
        mask = torch.arange(10) == 0
    if case == "all equal":
        x = torch.ones_like(x)
    rotation, translation = kabsch(x, target, mask)
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64), atol=1e-10)
    assert torch.linalg.det(rotation).item() == pytest.approx(1.0)
    assert translation.isfinite().all()


def test_superimpose_ignores_masked_points_and_respects_weights():
    x, y = points(12), points(12, seed=1)
    mask = torch.arange(12) < 8
    fitted = superimpose(x, y, mask)
    assert torch.allclose(fitted[:8], superimpose(x[:8], y[:8]), atol=1e-10)
    other = y.clone()
    other[8:] += 100
    assert torch.allclose(superimpose(x, other, mask), fitted, atol=1e-10)
    doubled = superimpose(torch.cat([x, x[:4]]), torch.cat([y, y[:4]]))[:12]
    assert torch.allclose(superimpose(x, y, 1.0 + (torch.arange(12) < 4).double()), doubled, atol=1e-10)


def test_superimpose_agrees_with_biotite():
    (atoms, opened), (other, closed) = read(OPEN), read(CLOSED)
    expected, _ = struc.superimpose(other, atoms)
    fitted = superimpose(opened.positions[opened.atom_mask], closed.positions[closed.atom_mask])
    by_file = np.zeros_like(fitted.numpy())
    order = np.lexsort((_slots(atoms), struc.get_residue_positions(atoms, np.arange(len(atoms)))))
    by_file[order] = fitted.numpy()
    assert np.abs(by_file - expected.coord).max() < 1e-3


def _slots(atoms: struc.AtomArray) -> list[int]:
    return [ATOM14[residue].index(atom) for residue, atom in zip(atoms.res_name, atoms.atom_name, strict=True)]


def test_kabsch_stays_in_full_precision_under_autocast_and_for_half_input():
    x = points(30).float()
    rotation = random_rotation((), torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fitted = superimpose(x, x @ rotation.float().mT)
        exact = superimpose(x, (x[:, None] * rotation).sum(-1))
    assert fitted.dtype == torch.float32 and (exact - (x[:, None] * rotation).sum(-1)).abs().max() < 1e-5
    half, _ = kabsch(x.bfloat16(), x.bfloat16())
    assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), torch.eye(3), atol=1e-2)


def test_random_rotations_are_proper_reproducible_and_uniform():
    rotation = random_rotation((20000,), torch.Generator().manual_seed(0), dtype=torch.float64)
    again = random_rotation((20000,), torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(rotation, again)
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand_as(rotation), atol=1e-10)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(20000, dtype=torch.float64))
    trace = rotation.diagonal(dim1=-2, dim2=-1).sum(-1)
    # Haar measure: characters are orthonormal, so E[trace] = 0 and E[trace^2] = 1; every entry has mean 0, variance 1/3
    assert rotation.mean(0).abs().max() < 0.02
    assert (rotation.var(0) - 1 / 3).abs().max() < 0.01
    assert trace.square().mean().item() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("name", [OPEN, CLOSED])
def test_backbone_torsions_agree_with_biotite(name):
    atoms, protein = read(name)
    torsions, exists = backbone_torsions(protein.positions, protein.atom_mask)
    expected = np.stack(struc.dihedral_backbone(atoms), -1)
    assert np.array_equal(exists.numpy(), ~np.isnan(expected))
    assert np.allclose(torsions.numpy(), np.nan_to_num(expected), atol=1e-4)


def test_backbone_torsions_over_gaps_and_missing_atoms_are_masked():
    _, protein = read(OPEN)
    linked = torch.ones(protein.num_residues - 1, dtype=torch.bool)
    linked[9] = False  # between residues 9 and 10
    torsions, exists = backbone_torsions(protein.positions, protein.atom_mask, linked)
    _, everything = backbone_torsions(protein.positions, protein.atom_mask)
    assert (exists ^ everything).nonzero().tolist() == [[9, 1], [9, 2], [10, 0]]
    assert (torsions[~exists] == 0).all()
    mask = protein.atom_mask.clone()
    mask[20, 0] = False  # N
    _, exists = backbone_torsions(protein.positions, mask)
    assert (exists ^ everything).nonzero().tolist() == [[19, 1], [19, 2], [20, 0], [20, 1]]


def test_chi_angles_agree_with_biotite():
    atoms, protein = read(OPEN)
    chi, exists = chi_angles(protein.positions, protein.atom_mask, protein.residue_type)
    expected = struc.dihedral_side_chain(atoms)
    assert exists.sum() > 300
    compared = exists.numpy() & ~np.isnan(expected)
    assert compared.sum() == exists.sum()
    difference = np.angle(np.exp(1j * (chi.numpy() - expected)[compared]))
    assert np.abs(difference).max() < 1e-4


def test_chi_angles_are_batched_and_differentiable():
    _, protein = read(OPEN)
    positions = protein.positions[:40].expand(2, 40, 14, 3).clone().requires_grad_()
    mask, types = protein.atom_mask[:40].expand(2, -1, -1), protein.residue_type[:40].expand(2, -1)
    chi, exists = chi_angles(positions, mask, types)
    assert chi.shape == exists.shape == (2, 40, 4)
    chi.sum().backward()
    assert positions.grad.isfinite().all() and positions.grad.abs().max() > 0
