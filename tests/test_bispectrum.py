import itertools

import pytest
import torch
from adk import CLOSED, COBROTOXIN, OPEN, read

from ophio.errors import UserError
from ophio.geometry import random_rotation
from ophio.metrics import bispectrum as module
from ophio.metrics.bispectrum import CENTRES, LMAX, WIDTH, bispectrum, bispectrum_mmd, parity
from ophio.testing import random_motion


def ca(name: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return read(name)[1].ca.to(dtype)


def fragments(name: str, first: int, length: int = 40, step: int = 9) -> list[torch.Tensor]:
    """Windows of a real chain that stand for chains of one distribution."""
    trace = ca(name, torch.float32)
    return [trace[start : start + length] for start in range(first, len(trace) - length + 1, step)]


def walks(count: int, seed: int, length: int = 12) -> list[torch.Tensor]:
    steps = torch.randn(count, length, 3, generator=torch.Generator().manual_seed(seed))
    return list(2.2 * steps.cumsum(1))


# Descriptors


@pytest.mark.parametrize("name", [OPEN, COBROTOXIN])
def test_motions_leave_the_bispectrum_alone(name):
    trace = ca(name)
    rotation, translation = random_motion()
    before, after = bispectrum(trace), bispectrum(trace @ rotation.T + translation)
    assert before.shape == (len(trace), len(parity()))
    assert torch.allclose(before, after, atol=1e-8, rtol=1e-8)
    assert (before.std(0) > 1e-3).all()


def test_a_mirror_changes_the_sign_of_odd_products():
    trace, signs = ca(OPEN), parity().double()
    flipped = bispectrum(trace * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    assert torch.allclose(flipped, bispectrum(trace) * signs, atol=1e-8, rtol=1e-8)
    odd = bispectrum(trace)[:, signs < 0]
    assert 0.1 < (signs < 0).double().mean() < 0.5
    assert (odd.abs().amax(1) > 0.1).double().mean() > 0.95  # of the residues of a protein, which are hence chiral


def test_flat_surroundings_have_no_odd_products():
    flat = 5 * torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat[:, 2] = 0
    values = bispectrum(flat)
    assert values[:, parity() < 0].abs().max() < 1e-9 < values[:, parity() > 0].abs().max()


def test_products_are_as_many_as_differ():
    points = 5 * torch.randn(400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = bispectrum(points)
    values = (values / values.norm(dim=0)).T
    assert ((values @ values.T).abs() - torch.eye(len(values))).max() < 1 - 1e-6
    channels = list(itertools.product(range(LMAX + 1), range(len(CENTRES))))
    expected = 0
    for a, b, c in itertools.combinations_with_replacement(channels, 3):
        couple = c[0] <= a[0] + b[0]
        expected += couple and not (sum(degree for degree, _ in (a, b, c)) % 2 and (a == b or b == c))
    assert len(values) == expected


def test_first_products_are_cubes_and_squares_of_the_density():
    """One neighbour 5 Å away fills two radial functions by half; two in opposite directions have no vector."""
    one = torch.tensor([[0.0, 0, 0], [5, 0, 0]], dtype=torch.float64)
    scalars = bispectrum(one)[0, :10]  # degrees 0, 0, 0 of radial functions 000, 001, 002, 011, ...
    assert scalars.tolist() == pytest.approx([0.125, 0.125, 0, 0.125, 0, 0, 0.125, 0, 0, 0], abs=1e-9)
    squares = bispectrum(one)[0, 10]  # degrees 0, 1, 1: the coupling is 1 / sqrt(3), the vector has length sqrt(3) / 2
    assert squares.abs().item() == pytest.approx(0.5 * 0.75 / 3**0.5)
    both = torch.cat([one, -one[1:]])
    assert bispectrum(both)[0, 10].abs() < 1e-9
    assert bispectrum(both)[0, 0].item() == pytest.approx(1)


def test_what_is_beyond_the_radius_does_not_count_and_nothing_jumps_there():
    points = torch.tensor([[0.0, 0, 0], [4, 0, 0], [0, CENTRES[-1] + WIDTH, 0]], dtype=torch.float64)
    alone = bispectrum(points[:2])[0]
    assert torch.allclose(bispectrum(points)[0], alone, atol=1e-12)
    inside = points - torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 0.01, 0]], dtype=torch.float64)
    change = (bispectrum(inside)[0] - alone).abs().max()
    assert 0 < change < 1e-3


def test_padding_and_batching_change_nothing():
    chains = [ca(COBROTOXIN), ca(OPEN)[:50]]
    positions, mask = module.pad_chains(chains)
    filled = torch.where(mask[..., None], positions, torch.randn(positions.shape, dtype=torch.float64))
    batch = bispectrum(filled, mask)
    for row, chain in zip(batch, chains, strict=True):
        assert torch.allclose(row[: len(chain)], bispectrum(chain), atol=1e-10, rtol=1e-10)


def test_coincident_atoms_are_finite():
    assert bispectrum(torch.zeros(4, 3)).isfinite().all()


# Discrepancy


def test_discrepancy_is_its_definition(monkeypatch):
    """All residues, pair by pair, without those of one chain; blocks and batches do not matter."""
    x, y = walks(4, 0), walks(5, 1, length=10)
    found = bispectrum_mmd(x, y, rounds=1)
    monkeypatch.setattr(module, "BLOCK", 7)
    monkeypatch.setattr(module, "BATCH", 2)
    assert bispectrum_mmd(x, y, rounds=1).squared_mmd == pytest.approx(found.squared_mmd, abs=1e-6)
    values = [[bispectrum(chain).double() for chain in chains] for chains in (x, y)]
    every = torch.cat(values[1])
    mean, spread = every.mean(0), every.std(0)
    values = [[(chain - mean) / spread for chain in chains] for chains in values]
    width = torch.pdist(torch.cat(values[1])).median()

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        squared = (a[:, None] - b).square().sum(-1) / width**2
        return sum((-squared / (2 * scale**2)).exp() for scale in (0.5, 1, 2)).flatten() / 3

    def within(chains: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([kernel(a, b) for a, b in itertools.permutations(chains, 2)]).mean()

    between = torch.cat([kernel(a, b) for a in values[0] for b in values[1]]).mean()
    expected = within(values[0]) + within(values[1]) - 2 * between
    assert found.squared_mmd == pytest.approx(expected.item(), abs=1e-6)


def test_discrepancy_of_one_distribution_is_zero_on_average_and_below_the_floor():
    results = [bispectrum_mmd(walks(20, 2 * k), walks(40, 2 * k + 1), rounds=100, seed=k) for k in range(40)]
    values = torch.tensor([result.squared_mmd for result in results])
    assert abs(values.mean()) < 3 * values.std() / len(values) ** 0.5
    assert -0.05 < values.min() < 0
    above = sum(result.squared_mmd > result.floor for result in results) / len(results)
    assert above < 0.2
    p_values = torch.tensor([result.p_value for result in results])
    assert 0.3 < p_values.mean() < 0.7


def test_mirror_images_and_noise_differ_from_the_structures_themselves():
    samples, reference = fragments(OPEN, 0), fragments(CLOSED, 4, step=8)
    generator = torch.Generator().manual_seed(0)
    same = bispectrum_mmd(samples, reference, rounds=200)
    mirrored = bispectrum_mmd([chain * torch.tensor([1.0, -1.0, 1.0]) for chain in samples], reference, rounds=200)
    shaken = bispectrum_mmd([x + torch.randn(x.shape, generator=generator) for x in samples], reference, rounds=200)
    assert same.p_value > 0.05
    for other in (mirrored, shaken):
        assert other.p_value < 0.01
        assert other.squared_mmd > 3 * max(other.floor, same.squared_mmd)
        assert other.low < other.squared_mmd < other.high
        assert other.low > 0


def test_discrepancy_neither_depends_on_orientation_nor_on_luck():
    samples, reference = fragments(OPEN, 0), fragments(CLOSED, 4)
    found = bispectrum_mmd(samples, reference, residues=200, rounds=50)
    assert bispectrum_mmd(samples, reference, residues=200, rounds=50) == found
    assert bispectrum_mmd(samples, reference, residues=200, rounds=50, seed=1) != found
    turned = [chain @ random_rotation(generator=torch.Generator().manual_seed(k)).T for k, chain in enumerate(samples)]
    assert bispectrum_mmd(turned, reference, residues=200, rounds=50) == pytest.approx(found, abs=1e-5)


def test_fewer_chains_and_residues_estimate_the_same(monkeypatch):
    samples, reference = walks(60, 0), [1.2 * chain for chain in walks(60, 1)]
    found = bispectrum_mmd(samples, reference, rounds=200)
    for limit, residues in ((60, 200), (40, 4096)):
        monkeypatch.setattr(module, "CHAINS", limit)
        assert found.low < bispectrum_mmd(samples, reference, residues, rounds=1).squared_mmd < found.high


def test_unfit_sets_are_named():
    chains = walks(3, 0)
    with pytest.raises(UserError, match="1 sample chains: the discrepancy needs at least two"):
        bispectrum_mmd(chains[:1], chains)
    with pytest.raises(UserError, match="0 reference chains"):
        bispectrum_mmd(chains, [])
    with pytest.raises(UserError, match="reference 1: a CA position is not finite"):
        bispectrum_mmd(chains, [chains[0], chains[1] * torch.nan])
