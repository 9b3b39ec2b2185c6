"""The geometry finish: what it repairs, what it leaves alone."""

import math

import pytest
import torch
from adk import CLOSED, COBROTOXIN, OPEN, read

from ophio.constants import ANGLES, ATOM14, BONDS, CA, CB, PAIRS, RESIDUE_NAMES, TYPE_OF, C, N, O
from ophio.geometry import angle, backbone_torsions, chi_angles, random_rotation
from ophio.idealize import _LENGTHS, _SIZES, idealize
from ophio.metrics import (
    angle_outliers,
    bond_outliers,
    ca_rmsd,
    chain_breaks,
    chain_links,
    chirality_errors,
    clashes,
    omega_outliers,
    ramachandran_favoured,
    side_chain_bond_rmsd,
    valid_residues,
)
from ophio.metrics.ramachandran import usual_torsions
from ophio.metrics.rmsd import rmsd
from ophio.protein import Protein, empty, stack


@pytest.fixture
def native() -> Protein:
    return read(OPEN)[1].crop(0, 120)


def noisy(protein: Protein, spread: float, seed: int = 0) -> Protein:
    noise = torch.randn(protein.positions.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return protein.with_positions(protein.positions + spread * noise.to(protein.positions.dtype))


def moved(before: Protein, after: Protein) -> float:
    """RMSD of all atoms, in place."""
    flat = (p.positions.flatten(-3, -2) for p in (before, after))
    return rmsd(*flat, before.atom_mask.flatten(-2), superimpose=False).max().item()


def squeezed(native: Protein, far: float) -> Protein:
    """Residues 31-60 pushed `far` (Å) towards the centre of all 120."""
    shift = torch.zeros(120, 1, 3)
    inside = native.ca[30:60].mean(0) - native.ca.mean(0)
    shift[30:60] = -far * inside / inside.norm()
    return native.with_positions(native.positions + shift)


def of(metric, protein: Protein) -> float:
    return metric(protein.positions, protein.atom_mask).item()


def clash_score(protein: Protein) -> float:
    return clashes(protein.positions, protein.atom_mask, protein.residue_type).item()


@pytest.mark.parametrize("name", [OPEN, CLOSED])
def test_a_good_structure_hardly_moves(name):
    protein = read(name)[1]
    finished = idealize(protein)
    assert of(valid_residues, finished) == 1.0 and clash_score(finished) == 0
    assert moved(protein, finished) < 0.07
    again = idealize(finished)
    assert moved(finished, again) < 0.003


def test_an_old_nmr_model_is_repaired():
    protein = read(COBROTOXIN)[1]
    finished = idealize(protein)
    assert of(valid_residues, protein) < 0.8 and of(valid_residues, finished) == 1.0
    assert moved(protein, finished) < 0.21


def test_noise_is_repaired_with_small_moves_towards_the_truth(native):
    rough = noisy(native, 0.15)
    finished = idealize(rough)
    assert of(valid_residues, rough) < 0.05 and of(valid_residues, finished) > 0.99
    assert of(bond_outliers, rough) > 0.6 and of(bond_outliers, finished) == 0
    assert of(angle_outliers, rough) > 0.4 and of(angle_outliers, finished) < 0.005
    assert of(omega_outliers, finished) == of(chirality_errors, finished) == of(chain_breaks, finished) == 0
    assert clash_score(rough) > 2 and clash_score(finished) == 0
    assert moved(rough, finished) < 0.3
    mask = native.atom_mask
    assert ca_rmsd(finished.positions, native.positions, mask) < ca_rmsd(rough.positions, native.positions, mask)
    assert moved(native, finished) < moved(native, rough)


def test_every_bond_and_angle_of_every_residue_type_is_restored():
    """Two noisy structures with all twenty types."""
    seen = set()
    for name in (OPEN, COBROTOXIN):
        native = read(name)[1]
        finished = idealize(noisy(native, 0.15))
        lengths = finished.positions, native.positions, native.atom_mask, native.residue_type
        assert side_chain_bond_rmsd(*lengths) < 0.04
        for x, mask, kind in zip(finished.positions, finished.atom_mask, finished.residue_type.tolist()):
            residue = RESIDUE_NAMES[kind]
            if not mask[: len(ATOM14[residue])].all():
                continue
            seen.add(residue)
            lengths = torch.tensor([(x[a] - x[b]).norm() for a, b in BONDS[residue]])
            sizes = torch.tensor([math.degrees(angle(x[a], x[b], x[c])) for a, b, c in ANGLES[residue]])
            ideal_lengths = torch.tensor([float(length) for length in _LENGTHS[residue].split()])
            ideal_sizes = torch.tensor([float(size) for size in _SIZES[residue].split()])
            assert (lengths - ideal_lengths).abs().max() < 0.03, residue
            assert (sizes - ideal_sizes).abs().max() < 8, residue
            assert (sizes - ideal_sizes).abs().median() < 3.5, residue
    assert seen == set(RESIDUE_NAMES)


def test_rings_are_flat(native):
    finished = idealize(noisy(native, 0.15))
    for name in ("PHE", "TYR", "HIS"):
        ring = [slot for slot, atom in enumerate(ATOM14[name]) if slot > CB and atom != "OH"]
        for x in finished.positions[finished.residue_type == TYPE_OF[name]]:
            points = x[ring] - x[ring].mean(0)
            assert torch.linalg.svdvals(points)[-1] / math.sqrt(len(ring)) < 0.05, name


def test_clashes_are_pushed_apart_without_breaking_the_chain(native):
    """Residues 31-60 pushed a little way into the others."""
    pushed = squeezed(native, 1.2)
    before, after = clash_score(pushed), clash_score(finished := idealize(pushed))
    assert before > 5 and after <= before / 5
    assert of(valid_residues, finished) > 0.98


def test_handedness_is_kept_and_restored(native):
    """Hands of CA, ILE CB and THR CB come out right; the naming of VAL and LEU stays as it was."""

    def hand(protein: Protein, name: str, atoms: str) -> torch.Tensor:
        first, *others = (ATOM14[name].index(atom) for atom in atoms.split())
        x = protein.positions[protein.residue_type == TYPE_OF[name]]
        return torch.det(torch.stack([x[:, other] - x[:, first] for other in others], -2))

    swapped = native.positions.clone()
    leucines = native.residue_type == TYPE_OF["LEU"]
    swapped[leucines, 6], swapped[leucines, 7] = native.positions[leucines, 7], native.positions[leucines, 6]
    swapped[40, CB] = 2 * swapped[40, CA] - swapped[40, CB]
    threonine = (native.residue_type == TYPE_OF["THR"]).nonzero()[0, 0]
    swapped[threonine, 5], swapped[threonine, 6] = native.positions[threonine, 6], native.positions[threonine, 5]
    rough = noisy(native.with_positions(swapped), 0.1)
    finished = idealize(rough)
    assert of(chirality_errors, rough) >= 1 and of(chirality_errors, finished) == 0
    assert (hand(rough, "THR", "CB CA OG1 CG2") < 0).sum() == 1
    assert (hand(finished, "ILE", "CB CA CG1 CG2") > 2).all() and (hand(finished, "THR", "CB CA OG1 CG2") > 2).all()
    assert (hand(native, "LEU", "CG CB CD2 CD1") > 2).all() and (hand(finished, "LEU", "CG CB CD2 CD1") < -2).all()
    assert (hand(finished, "VAL", "CB CA CG2 CG1") > 2).all()


def test_torsions_stay_near_those_of_the_start(native):
    rough = noisy(native, 0.1)
    finished = idealize(rough)
    before, exists = backbone_torsions(rough.positions, rough.atom_mask)
    after, _ = backbone_torsions(finished.positions, finished.atom_mask)
    turn = torch.rad2deg(torch.remainder(after - before + math.pi, 2 * math.pi) - math.pi).abs()
    assert turn[exists].median() < 12
    chi = [chi_angles(p.positions, p.atom_mask, p.residue_type) for p in (rough, finished)]
    turn = torch.rad2deg(torch.remainder(chi[1][0] - chi[0][0] + math.pi, 2 * math.pi) - math.pi).abs()
    assert turn[chi[0][1]].median() < 12


def test_cis_stays_cis(native):
    """A peptide bond turned by 180 degrees stays turned; one at 150 degrees is flattened to trans."""

    def turned(degrees: float) -> Protein:
        axis = torch.nn.functional.normalize(native.positions[50, N] - native.positions[49, C], dim=0)
        turn = torch.linalg.matrix_exp(math.radians(degrees) * torch.linalg.cross(torch.eye(3), axis.expand(3, 3)))
        positions = native.positions.clone()
        positions[50:] = (positions[50:] - positions[50, N]) @ turn.T + positions[50, N]
        return native.with_positions(positions).crop(45, 56)

    for degrees, expected in ((180.0, 0.0), (-30.0, 180.0)):
        finished = idealize(turned(degrees), sweeps=300)
        torsions, _ = backbone_torsions(finished.positions, finished.atom_mask)
        omega = torch.rad2deg(torsions[4, 2]).abs().item()
        assert omega == pytest.approx(expected, abs=17)
        assert of(valid_residues, finished) == 1.0


def test_is_equivariant(native):
    rough = noisy(native.to(torch.float64), 0.15)
    rotation = random_rotation((), torch.Generator().manual_seed(1), torch.float64)
    turned = rough.with_positions(rough.rotate(rotation).positions + 7.0)
    expected = idealize(rough).positions @ rotation.T + 7.0
    assert (idealize(turned).positions - expected)[rough.atom_mask].abs().max() < 1e-6
    assert idealize(rough).positions.dtype == torch.float64


def test_chains_of_a_batch_do_not_feel_each_other(native):
    rough = [noisy(native, 0.15), noisy(read(COBROTOXIN)[1], 0.15, seed=1)]
    batch = idealize(stack(rough))
    for k, protein in enumerate(rough):
        alone = idealize(protein)
        assert torch.equal(batch.positions[k, : protein.num_residues], alone.positions)
        assert (batch.positions[k, protein.num_residues :] == 0).all()


def test_missing_and_broken_atoms_are_untouched(native):
    rough = noisy(native, 0.15)
    mask, positions = rough.atom_mask.clone(), rough.positions.clone()
    mask[10, CB:] = mask[20, O] = mask[30] = False
    positions[~mask] = 99.0  # were they read, atoms nearby would fly
    positions[40, CB] = torch.nan
    holed = rough.replace(atom_mask=mask, positions=positions)
    finished = idealize(holed)
    assert torch.equal(finished.positions[~mask], positions[~mask])
    sound = mask.clone()
    sound[40, CB] = False
    assert finished.positions[40, CB].isnan().all() and finished.positions[sound].isfinite().all()
    assert (finished.positions - positions)[sound].square().sum(-1).mean().sqrt() < 0.3
    assert of(valid_residues, finished) > 0.97


def test_gaps_stay_and_stretched_links_close(native):
    along = native.positions[60, N] - native.positions[59, C]

    def apart(bonds: float) -> Protein:
        return native.with_positions(native.positions + bonds * along * (torch.arange(120) >= 60)[:, None, None])

    gap, stretched = apart(30.0), apart(0.7)
    assert of(chain_breaks, stretched) == of(chain_breaks, gap) == 1
    assert of(chain_breaks, idealize(gap)) == 1 and moved(gap, idealize(gap)) < 0.07
    assert of(chain_breaks, idealize(stretched)) == 0
    linked = chain_links(stretched.positions, stretched.atom_mask)
    left = idealize(stretched, linked)
    assert of(chain_breaks, left) == 1 and moved(stretched, left) < 0.12


def test_nothing_to_do(native):
    rough = noisy(native, 0.15)
    assert torch.equal(idealize(rough, sweeps=0).positions, rough.positions)
    for protein in (empty(0), empty(3)):
        assert torch.equal(idealize(protein).positions, protein.positions)
    single = native.crop(0, 1)
    assert moved(single, idealize(single)) < 0.05
    collapsed = native.crop(0, 5).with_positions(torch.zeros(5, 14, 3))
    assert idealize(collapsed).positions.isfinite().all()


def test_is_constant_to_autograd_and_keeps_the_rest(native):
    rough = noisy(native, 0.15)
    tracked = rough.replace(positions=rough.positions.clone().requires_grad_())
    finished = idealize(tracked)
    assert not finished.positions.requires_grad
    assert torch.equal(finished.positions, idealize(rough).positions)
    assert finished.residue_type is tracked.residue_type and finished.name == tracked.name


def test_ideal_values_treat_interchangeable_atoms_alike():
    for name, pairs in PAIRS.items():
        lengths = dict(zip(BONDS[name], _LENGTHS[name].split(), strict=True))
        sizes = dict(zip(ANGLES[name], _SIZES[name].split(), strict=True))
        swap = dict(pairs) | {b: a for a, b in pairs}
        for table in (lengths, sizes):
            for atoms, value in table.items():
                other = tuple(swap.get(atom, atom) for atom in atoms)
                assert table.get(other, table.get(other[::-1])) == value, (name, atoms)


# torsions held


def torsions_of(protein: Protein) -> torch.Tensor:
    return backbone_torsions(protein.positions, protein.atom_mask)[0][1:-1, :2]


def turned(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """By how many degrees."""
    return torch.rad2deg((a - b + math.pi).remainder(2 * math.pi) - math.pi).abs()


def test_held_torsions_stay_where_atoms_make_way(native):
    rough = squeezed(native, 6.0)
    inside = [k for k in range(118) if not 27 < k < 31 and not 57 < k < 61]  # the seams are torn
    wanted = usual_torsions(torsions_of(rough), rough.residue_type[1:-1])[inside]
    free, held = (idealize(rough, hold_torsions=hold) for hold in (False, True))
    far = [(turned(torsions_of(finished)[inside], wanted) > 22).float().mean() for finished in (free, held)]
    assert far[0] > 0.07 and far[1] < 0.05
    assert of(valid_residues, held) > 0.94 and clash_score(held) < clash_score(rough) / 10


def test_unusual_torsions_become_usual(native):
    rough = noisy(native, 0.15)
    finished = idealize(rough, hold_torsions=True)
    before, after = (ramachandran_favoured(p.positions, p.atom_mask, p.residue_type).item() for p in (rough, finished))
    assert before < 0.9 and after > 0.98
    assert of(valid_residues, finished) == 1.0 and clash_score(finished) == 0


def test_holding_is_equivariant_and_needs_no_whole_chain(native):
    rough = noisy(native, 0.2).crop(0, 40)
    turn = random_rotation(dtype=torch.float32)
    both = (
        idealize(rough, hold_torsions=True),
        idealize(rough.with_positions(rough.positions @ turn.T), hold_torsions=True),
    )
    assert (both[0].positions @ turn.T - both[1].positions).abs().max() < 0.02
    mask = rough.atom_mask.clone()
    mask[10, C] = mask[20] = False
    gappy = rough.replace(atom_mask=mask)
    batch = stack([gappy, gappy.crop(0, 15)])
    finished = idealize(batch, hold_torsions=True).unstack([40, 15])
    assert torch.equal(finished[0].positions[~mask], rough.positions[~mask])  # what is missing stays
    assert all(chain.positions.isfinite().all() for chain in finished)
