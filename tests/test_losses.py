import math
from itertools import product

import pytest
import torch
from adk import COBROTOXIN, OPEN, read

from ophio.autoencoder import Decoded
from ophio.constants import ANGLES, BONDS, CHAIN_BREAK_CN, CHI_ATOMS, NUM_SLOTS, PAIRS, RESIDUE_NAMES, TYPE_OF, C, N
from ophio.geometry import transform
from ophio.losses import (
    Chemistry,
    ReconstructionLoss,
    clash,
    local_vector_map,
    match_pairs,
    residue_type_cross_entropy,
    sampled_vector_map,
)
from ophio.losses.clash import vdw_radii
from ophio.losses.reconstruction import TERMS
from ophio.losses.vector_map import masked_mean, pseudo_huber, sample_atoms
from ophio.protein import Protein, stack
from ophio.residue import swap_pairs
from ophio.testing import random_motion, random_protein

ALL = 10_000  # more atoms than there are: none is left to chance
GEOMETRIC = ("local_vectors", "vector_map", "bonds", "angles", "torsions")


def native() -> Protein:
    """Two chains of 24 and 36 residues, padded."""
    return stack([read(OPEN)[1].crop(0, 24).center(), read(COBROTOXIN)[1].crop(0, 36).center()]).to(torch.float64)


def loss(num_atoms: int = ALL, **weights: float) -> ReconstructionLoss:
    return ReconstructionLoss(dict.fromkeys(TERMS, 1.0) | weights, num_atoms)


def decoded(protein: Protein, positions: torch.Tensor | None = None) -> Decoded:
    """A prediction with the right types, at the true positions unless told otherwise."""
    known = protein.residue_type.clamp(max=19)
    logits = 50.0 * torch.nn.functional.one_hot(known, 20).to(protein.positions)
    return Decoded(logits, protein.residue_type, protein.positions if positions is None else positions)


def no_kl(protein: Protein) -> torch.Tensor:
    return protein.positions.new_zeros(len(protein.residue_type))


def terms_of(protein: Protein, positions: torch.Tensor, **options) -> dict[str, torch.Tensor]:
    return loss(**options)(decoded(protein, positions), no_kl(protein), protein)[1]


def noisy(protein: Protein, sigma: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(protein.positions.shape, generator=generator, dtype=protein.positions.dtype)
    return protein.positions + sigma * noise


def assert_same(one: dict, other: dict, tolerance: float = 1e-9) -> None:
    assert list(one) == list(other) == list(TERMS)
    for name in TERMS:
        assert one[name].item() == pytest.approx(other[name].item(), abs=tolerance), name


def without(protein: Protein, residues: torch.Tensor, slot: int) -> Protein:
    """The protein with one atom missing in some residues."""
    mask = protein.atom_mask.clone()
    mask[..., slot] &= ~residues
    return protein.replace(atom_mask=mask).with_positions(protein.positions)


# The whole


def test_the_loss_is_zero_at_the_truth():
    protein = native()
    total, terms = loss()(decoded(protein), no_kl(protein), protein)
    assert_same(terms, dict.fromkeys(TERMS, torch.zeros(())), tolerance=1e-7)
    assert total.item() == pytest.approx(0.0, abs=1e-6)


def test_every_term_is_positive_off_the_truth():
    protein = native()
    terms = terms_of(protein, noisy(protein))
    for name in GEOMETRIC:
        assert terms[name] > 0.01, name
    assert terms_of(protein, 0.2 * protein.positions)["clash"] > 0.01
    uniform = Decoded(torch.zeros(2, 36, 20, dtype=torch.float64), protein.residue_type, protein.positions)
    terms = loss()(uniform, torch.tensor([24.0, 72.0], dtype=torch.float64), protein)[1]
    assert terms["residue_type"].item() == pytest.approx(math.log(20))
    assert terms["kl"].item() == pytest.approx((24 / 24 + 72 / 36) / 2)  # for each residue, then over proteins


def test_the_loss_is_the_weighted_sum_of_its_terms():
    protein = native()
    weights = {name: float(k) for k, name in enumerate(TERMS)}
    total, terms = loss(**weights)(decoded(protein, noisy(protein)), no_kl(protein), protein)
    assert total.item() == pytest.approx(sum(weights[name] * terms[name].item() for name in TERMS))


@pytest.mark.parametrize("odd", [{"bond": 1.0}, {"kl": None}])
def test_weights_must_name_all_terms_and_no_others(odd):
    weights = dict.fromkeys(TERMS, 1.0) | odd
    weights = {name: value for name, value in weights.items() if value is not None}
    with pytest.raises(ValueError, match=f"name exactly local_vectors, .*not so: {next(iter(odd))}"):
        ReconstructionLoss(weights)


def test_the_loss_does_not_depend_on_the_frame():
    protein, motion = native(), random_motion()
    positions = noisy(protein)

    def turned(x: torch.Tensor) -> torch.Tensor:
        return transform(x.flatten(1, 2), *motion).view_as(x)

    expected = terms_of(protein, positions)
    assert_same(terms_of(protein.with_positions(turned(protein.positions)), turned(positions)), expected)
    shifted = positions + torch.tensor([10.0, -20.0, 5.0], dtype=torch.float64)
    half_shifted = terms_of(protein, shifted)
    complete = terms_of(without_pairs(protein), without_pairs(protein).positions + shifted - positions)
    assert_same(complete, dict.fromkeys(TERMS, torch.zeros(())), tolerance=1e-7)
    assert half_shifted["bonds"].item() == pytest.approx(expected["bonds"].item())


def without_pairs(protein: Protein) -> Protein:
    """Residues with interchangeable atoms masked: which order is nearer depends on where the prediction lies."""
    paired = torch.isin(protein.residue_type, torch.tensor([TYPE_OF[name] for name in PAIRS]))
    mask = protein.atom_mask & ~paired[..., None]
    return protein.replace(atom_mask=mask).with_positions(protein.positions)


def test_names_of_interchangeable_atoms_do_not_matter():
    protein = native()
    some = torch.rand(protein.residue_type.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    for positions in (protein.positions, noisy(protein, 0.5)):
        swapped = protein.replace(positions=swap_pairs(protein.positions, protein.residue_type, some))
        assert not torch.equal(swapped.positions, protein.positions)
        assert_same(terms_of(swapped, positions), terms_of(protein, positions))


@pytest.mark.parametrize("name", list(PAIRS))
def test_half_a_pair_has_no_name_either(name):
    """The one atom that is there may be the first or the second: neither is held against the prediction."""
    protein = native()
    here = protein.residue_type == TYPE_OF[name]
    positions = swap_pairs(protein.positions, protein.residue_type, here)
    for slot in PAIRS[name][0]:
        half = without(protein, here, slot)
        for predicted in (protein.positions, positions):
            assert_same(terms_of(half, predicted), dict.fromkeys(TERMS, torch.zeros(())), tolerance=1e-6)


def test_matching_takes_the_nearer_order():
    protein = native()
    types, everywhere = protein.residue_type, torch.ones_like(protein.residue_type, dtype=torch.bool)
    swapped = swap_pairs(protein.positions, types, everywhere)
    assert torch.equal(match_pairs(swapped, protein.positions, types), protein.positions)
    assert torch.equal(match_pairs(protein.positions, protein.positions, types), protein.positions)


@pytest.mark.parametrize("extra", [1, 30])
def test_padding_changes_nothing(extra):
    protein = native()
    padded = protein.pad(protein.num_residues + extra)
    positions = noisy(protein)
    longer = torch.nn.functional.pad(positions, (0, 0, 0, 0, 0, extra), value=33.0)
    assert_same(terms_of(padded, longer), terms_of(protein, positions))


def test_every_residue_of_a_chain_counts():
    """The last one, too, and that of a chain of one."""
    protein = native()
    for residue in (0, 20, 35):
        positions = protein.positions.clone()
        positions[1, residue, 4] += 1.0
        terms = terms_of(protein, positions)
        assert terms["local_vectors"] > 1e-5
        assert terms["bonds"] > 1e-5
    single = protein.map(lambda t: t[1:, :1])
    terms = terms_of(single, noisy(single))
    for name in ("local_vectors", "vector_map", "bonds", "angles"):
        assert terms[name] > 0.01, name


def test_missing_atoms_do_not_count():
    protein = native()
    missing = without(protein, torch.ones_like(protein.residue_type, dtype=torch.bool), 4)
    positions = protein.positions.clone()
    positions[:, :, 4] += 10.0
    assert_same(terms_of(missing, positions), dict.fromkeys(TERMS, torch.zeros(())), tolerance=1e-7)
    assert terms_of(protein, positions)["bonds"] > 0.1


def test_the_mean_is_over_proteins():
    protein = native()
    positions = noisy(protein)
    both = terms_of(protein, positions)
    alone = [terms_of(protein.map(lambda t, k=k: t[k : k + 1]), positions[k : k + 1]) for k in range(2)]
    assert_same(both, {name: (alone[0][name] + alone[1][name]) / 2 for name in TERMS})


def test_atoms_are_drawn_anew_and_by_the_seed():
    protein = native()
    positions = noisy(protein)
    torch.manual_seed(0)
    one, other = (terms_of(protein, positions, num_atoms=64) for _ in range(2))
    torch.manual_seed(0)
    again = terms_of(protein, positions, num_atoms=64)
    assert one["vector_map"] == again["vector_map"] != other["vector_map"]
    every = terms_of(protein, positions)["vector_map"].item()
    draws = torch.stack([terms_of(protein, positions, num_atoms=64)["vector_map"] for _ in range(50)])
    assert draws.mean().item() == pytest.approx(every, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_for_collapsed_and_for_perfect_predictions(dtype):
    protein = native().to(dtype)
    for start in (torch.zeros_like(protein.positions), protein.positions.clone()):
        positions = start.requires_grad_()
        total, _ = loss()(decoded(protein, positions), no_kl(protein), protein)
        total.backward()
        assert positions.grad.isfinite().all()
        assert positions.grad.abs().max() < 10


def test_descending_the_gradient_leads_to_the_truth():
    protein = native().crop(0, 30)
    start = noisy(protein, 0.3)
    positions = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([positions], lr=0.02)
    objective = loss(num_atoms=128, local_vectors=5.0, vector_map=5.0)
    for _ in range(60):
        optimizer.zero_grad()
        objective(decoded(protein, positions), no_kl(protein), protein)[0].backward()
        optimizer.step()
    before, after = terms_of(protein, start), terms_of(protein, positions.detach())
    for name in GEOMETRIC:
        assert after[name] < 0.3 * before[name], name


# Vector map


def test_the_mirror_image_is_penalised():
    """Distances are the same in the mirror image; vectors are not, whichever way it is turned."""
    protein = native()
    mirrored = protein.positions * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    for seed in range(3):
        rotation, _ = random_motion(seed)
        terms = terms_of(protein, mirrored @ rotation.T)
        assert terms["vector_map"] > 1
        assert terms["local_vectors"] > 0.5
        assert terms["bonds"] < 1e-3
        assert terms["torsions"] > 0.1


def test_pseudo_huber_is_quadratic_then_linear():
    lengths = torch.tensor([1e-3, 1e3], dtype=torch.float64)
    for delta in (0.5, 2.0):
        small, large = pseudo_huber(lengths.square(), delta).tolist()
        assert small == pytest.approx(0.5e-6, rel=1e-3)
        assert large == pytest.approx(delta * 1e3, rel=1e-2)


def test_mean_of_nothing_is_zero():
    values, mask = torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([[True, True], [False, False]])
    assert masked_mean(values, mask).tolist() == [2.0, 0.0]


def test_the_local_vector_map_takes_all_pairs_of_a_residue_and_its_follower():
    protein = stack([random_protein(5, missing=0.2), random_protein(3, seed=1)])
    mask = protein.atom_mask
    error = (noisy(protein) - protein.positions) * mask[..., None]
    found = local_vector_map(error, mask, delta=0.7)
    for chain in range(2):
        values = []
        for i, j in product(range(5), range(5)):
            if j - i in (0, 1):
                for a, b in product(range(NUM_SLOTS), range(NUM_SLOTS)):
                    if mask[chain, i, a] and mask[chain, j, b]:
                        square = (error[chain, i, a] - error[chain, j, b]).square().sum()
                        values.append(pseudo_huber(square[None], 0.7).item())
        assert found[chain].item() == pytest.approx(sum(values) / len(values))


def test_the_sampled_vector_map_takes_all_near_pairs():
    generator = torch.Generator().manual_seed(0)
    true, error = (10 * torch.randn(1, 12, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(12)[None] < 9
    found = sampled_vector_map(error, true, mask, radius=15.0)
    values = []
    for i, j in product(range(9), range(9)):
        if (true[0, i] - true[0, j]).norm() < 15:
            values.append(math.sqrt(1 + (error[0, i] - error[0, j]).square().sum().item()) - 1)
    assert 9 < len(values) < 81
    assert found.item() == pytest.approx(sum(values) / len(values))


def test_drawn_atoms_are_present_and_different():
    mask = stack([random_protein(10, missing=0.3), random_protein(2)]).atom_mask
    index, drawn = sample_atoms(mask, 40)
    for chain in range(2):
        chosen = index[chain][drawn[chain]]
        assert mask[chain].flatten()[chosen].all()
        assert len(chosen.unique()) == len(chosen) == min(40, int(mask[chain].sum()))


# Residue type


def test_cross_entropy_is_the_mean_over_residues():
    protein = native()
    logits = torch.randn(2, 36, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = residue_type_cross_entropy(logits, protein.residue_type, protein.residue_mask)
    for chain in range(2):
        probability = logits[chain].softmax(-1)
        shown = protein.residue_mask[chain].nonzero()[:, 0].tolist()
        values = [-probability[k, protein.residue_type[chain, k]].log().item() for k in shown]
        assert found[chain].item() == pytest.approx(sum(values) / len(values))


# Chemistry


def test_the_tables_hold_the_bonds_angles_and_torsions_of_every_residue():
    chemistry = Chemistry()
    for kind, name in enumerate(RESIDUE_NAMES):
        for term, inside, peptide in (("bonds", BONDS, 1), ("angles", ANGLES, 3), ("torsions", CHI_ATOMS, 3)):
            exists = getattr(chemistry, f"{term}_exist")[kind]
            slots = getattr(chemistry, f"{term}_slots")[kind][exists].tolist()
            assert exists.sum() == len(inside[name]) + peptide
            assert len({tuple(row) for row in slots}) == len(slots)
            assert sum(max(row) >= NUM_SLOTS for row in slots) == peptide
    assert not chemistry.bonds_exist[-1].any()
    tryptophan = chemistry.bonds_slots[TYPE_OF["TRP"]][chemistry.bonds_exist[TYPE_OF["TRP"]]].tolist()
    assert [12, 13] in tryptophan  # CZ3-CH2
    assert [C, NUM_SLOTS + N] in tryptophan


def test_bond_deviations_are_in_angstrom_and_averaged_over_bonds():
    """Two residues, ALA-GLY: 4 + 3 bonds inside, and the peptide bond; one of the eight is stretched by 0.5 Å."""
    types = torch.tensor([[TYPE_OF["ALA"], TYPE_OF["GLY"]]])
    mask = torch.zeros(1, 2, NUM_SLOTS, dtype=torch.bool)
    mask[0, 0, :5] = mask[0, 1, :4] = True
    true = torch.randn(1, 2, NUM_SLOTS, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    true[0, 1, N] = true[0, 0, C] + torch.tensor([1.33, 0.0, 0.0], dtype=torch.float64)
    predicted = true.clone()
    bond = true[0, 0, 4] - true[0, 0, 1]
    predicted[0, 0, 4] += 0.5 * bond / bond.norm()
    expected = (math.hypot(0.5, 0.01) - 0.01) / 8
    assert Chemistry()(predicted, true, mask, types)["bonds"].item() == pytest.approx(expected, rel=1e-6)


def test_no_peptide_bond_across_a_chain_break():
    protein = native().map(lambda t: t[:1])
    far = protein.positions.clone()
    far[:, 12:] += 40.0 * protein.atom_mask[:, 12:, :, None]
    broken = protein.with_positions(far)
    assert (broken.positions[0, 12, N] - broken.positions[0, 11, C]).norm() > CHAIN_BREAK_CN
    # predicting the whole chain is right for the true one, and not judged at the break of the broken one
    for name in ("bonds", "angles", "torsions"):
        assert terms_of(broken, protein.positions)[name] < 1e-6
        assert terms_of(protein, broken.positions)[name] > 1e-3


def test_torsions_do_not_jump_at_180_degrees():
    protein = native()
    axis = protein.positions[:, :, 1] - protein.positions[:, :, 0]
    nudged = protein.positions + 1e-6 * axis[:, :, None]
    assert terms_of(protein, nudged)["torsions"] < 1e-6


# Clashes


def test_radii_are_those_of_the_elements():
    radii = vdw_radii()
    assert radii[TYPE_OF["MET"]].tolist()[:8] == pytest.approx([1.55, 1.7, 1.7, 1.52, 1.7, 1.7, 1.8, 1.7])
    assert not radii[TYPE_OF["MET"], 8:].any()
    assert not radii[-1].any()


def test_clashes_are_measured_by_their_depth():
    true = torch.tensor([[[0.0, 0, 0], [10, 0, 0], [20, 0, 0]]], dtype=torch.float64)
    radius, mask = torch.full((1, 3), 1.7, dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    predicted = true.clone()
    predicted[0, 1, 0] = 2.0
    for residue, expected in (([0, 1, 9], 0.0), ([0, 5, 9], 2 * (0.8 * 3.4 - 2.0) / 6)):
        # pairs of residues that are not neighbours: 4 (ordered) in the first case, 6 in the second
        found = clash(predicted, true, radius, torch.tensor([residue]), mask)
        assert found.item() == pytest.approx(expected)
    contact = true.clone()
    contact[0, 1, 0] = 2.5  # closer than the limit, but so it is in the true structure
    found = clash(contact, contact, radius, torch.tensor([[0, 5, 9]]), mask)
    assert found.item() == pytest.approx(0.0, abs=1e-9)
