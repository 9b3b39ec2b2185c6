import importlib
import math

import biotite.structure as struc
import numpy as np
import pytest
import torch
from adk import CLOSED, COBROTOXIN, OPEN, read

from ophio import metrics
from ophio.constants import ATOM14, CA, CB, PAIRS, RESIDUE_NAMES, TYPE_OF, UNKNOWN, C, N, O
from ophio.geometry import random_rotation, superimpose, transform
from ophio.metrics.atoms import match_names
from ophio.metrics.ramachandran import USUAL, _table, ramachandran_coverage, residue_class, torsion_bins, usual_torsions
from ophio.protein import Protein, stack
from ophio.residue import swap_pairs

REPORT = {
    "ca_rmsd", "backbone_rmsd", "all_atom_rmsd", "gdt_ts", "gdt_ha", "tm_score", "lddt", "ca_lddt", "residue_accuracy",
    "side_chain_bond_rmsd", "mirrored",
}  # fmt: skip
VALIDITY = {
    "bond_outliers", "angle_outliers", "rama_outliers", "rama_favoured", "omega_outliers", "clashes", "ca_clashes",
    "chain_breaks", "chirality_errors", "left_handed_helices",
}  # fmt: skip


def chain(name: str) -> Protein:
    return read(name)[1]


def pair() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    opened, closed = chain(OPEN), chain(CLOSED)
    return opened.positions, closed.positions, opened.atom_mask & closed.atom_mask, opened.residue_type


def noisy(protein: Protein, sigma: float, seed: int = 0) -> Protein:
    noise = torch.randn(protein.positions.shape, generator=torch.Generator().manual_seed(seed))
    return protein.with_positions(protein.positions + sigma * noise.to(protein.positions.dtype))


def moved(protein: Protein, seed: int = 0) -> Protein:
    generator = torch.Generator().manual_seed(seed)
    rotated = protein.rotate(random_rotation(protein.residue_type.shape[:-1], generator, protein.positions.dtype))
    return rotated.with_positions(rotated.positions + torch.tensor([5.0, -7.0, 11.0]))


def assert_same(a: dict, b: dict, tolerance: float = 1e-5) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name], b[name], atol=tolerance, rtol=tolerance, equal_nan=True), name


# Agreement with other tools


def test_similarity_agrees_with_the_tmscore_program():
    """Golden numbers: `TMscore adk_open.pdb adk_closed.pdb` (Debian tm-align 20190822)."""
    x, y, mask, _ = pair()
    scores = metrics.similarity(x, y, mask)
    assert scores.tm_score.item() == pytest.approx(0.6897, abs=1e-4)
    assert scores.gdt_ts.item() == pytest.approx(0.5783, abs=1e-4)
    assert scores.gdt_ha.item() == pytest.approx(0.4159, abs=1e-4)
    assert metrics.ca_rmsd(x, y, mask).item() == pytest.approx(6.909, abs=1e-3)
    assert metrics.tm_score(x, y, mask) == scores.tm_score
    assert metrics.gdt_ts(x, y, mask) == scores.gdt_ts
    assert metrics.gdt_ha(x, y, mask) == scores.gdt_ha


def test_tm_score_of_the_superposition_agrees_with_biotite():
    x, y, mask, _ = pair()
    scores = metrics.similarity(x, y, mask)
    atoms, other = (read(name)[0] for name in (OPEN, CLOSED))
    atoms, other = atoms[atoms.atom_name == "CA"].copy(), other[other.atom_name == "CA"]
    index = np.arange(len(other))
    atoms.coord = transform(x[:, CA], scores.rotation, scores.translation).numpy()
    assert struc.tm_score(other, atoms, index, index) == pytest.approx(scores.tm_score.item(), abs=1e-5)
    atoms.coord = superimpose(x[:, CA], y[:, CA]).numpy()
    assert scores.tm_score.item() > struc.tm_score(other, atoms, index, index) + 0.01
    fitted, _, i, j = struc.superimpose_structural_homologs(other, atoms, max_iterations=1)
    assert scores.tm_score.item() == pytest.approx(struc.tm_score(other, fitted, i, j, 214), abs=2e-3)


def test_rmsd_agrees_with_biotite():
    x, y, mask, _ = pair()
    atoms, other = (read(name)[0] for name in (OPEN, CLOSED))
    for choice, function in (("CA", metrics.ca_rmsd), ("N CA C O", metrics.backbone_rmsd)):
        kept = np.isin(atoms.atom_name, choice.split())
        fitted, _ = struc.superimpose(other[kept], atoms[kept])
        assert function(x, y, mask).item() == pytest.approx(struc.rmsd(other[kept], fitted), abs=1e-3)
        in_place = function(x, y, mask, superimpose=False).item()
        assert in_place == pytest.approx(struc.rmsd(other[kept], atoms[kept]), abs=1e-3)
    fitted, _ = struc.superimpose(other, atoms)
    unnamed = torch.full((len(x),), UNKNOWN)  # nothing is interchangeable
    assert metrics.all_atom_rmsd(x, y, mask, unnamed).item() == pytest.approx(struc.rmsd(other, fitted), abs=1e-3)


def test_lddt_agrees_with_biotite():
    x, y, mask, types = pair()
    atoms, other = (read(name)[0] for name in (OPEN, CLOSED))
    ca = atoms.atom_name == "CA"
    assert metrics.lddt(x, y, mask).item() == pytest.approx(struc.lddt(other, atoms), abs=1e-4)
    assert metrics.lddt(y, x, mask).item() == pytest.approx(struc.lddt(atoms, other), abs=1e-4)
    assert metrics.ca_lddt(x, y, mask).item() == pytest.approx(struc.lddt(other[ca], atoms[ca]), abs=1e-4)
    assert metrics.lddt(x, y, mask, types) > metrics.lddt(x, y, mask)


def test_memory_chunks_change_nothing(monkeypatch):
    x, y, mask, types = pair()
    predicted = noisy(chain(OPEN), 0.5)

    def values() -> list[float]:
        clashing = metrics.clashes(predicted.positions, predicted.atom_mask, predicted.residue_type)
        return [value.item() for value in (metrics.lddt(x, y, mask, types), metrics.tm_score(x, y, mask), clashing)]

    whole = values()
    assert whole[2] > 10
    calls = []
    for name, size in (("lddt", 50000), ("similarity", 20000), ("clashes", 50000)):
        module = importlib.import_module(f"ophio.metrics.{name}")  # its function of the same name hides it
        monkeypatch.setattr(module, "CHUNK", size)
    cdist = torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda *args, **options: calls.append(args) or cdist(*args, **options))
    assert values() == pytest.approx(whole, abs=1e-5)
    assert len(calls) > 50 and max(len(a) * len(b) for a, b in calls) <= 50000


# Symmetries


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reports_do_not_depend_on_orientation(dtype):
    true = chain(CLOSED).crop(0, 90).to(dtype)
    predicted = noisy(true, 0.4)
    report = metrics.reconstruction_report(predicted, true)
    assert report.keys() == REPORT | VALIDITY
    assert all(value.shape == () and value.dtype == dtype and value.isfinite() for value in report.values())
    again = metrics.reconstruction_report(moved(predicted, 1), moved(true, 2))
    assert_same(report, again, 1e-9 if dtype == torch.float64 else 2e-3)


def test_padding_and_batching_change_nothing():
    whole = chain(CLOSED)
    true = [whole.crop(0, 60), whole.crop(30, 120), whole.crop(100, 141), whole.crop(150, 170)]
    predicted = [noisy(protein, 0.5, seed) for seed, protein in enumerate(true)]
    single = [metrics.reconstruction_report(a, b) for a, b in zip(predicted, true, strict=True)]
    expected = {name: torch.stack([report[name] for report in single]) for name in single[0]}
    a, b = stack(predicted, 128), stack(true, 128)
    assert_same(metrics.reconstruction_report(a, b), expected)
    garbage = a.replace(  # a model's output beyond the chain
        positions=torch.where(b.residue_mask[..., None, None], a.positions, torch.ones(())),
        atom_mask=torch.where(b.residue_mask[..., None], a.atom_mask, True),
        residue_type=torch.where(b.residue_mask, a.residue_type, 0),
    )
    assert_same(metrics.reconstruction_report(garbage, b), expected)
    squared = [protein.map(lambda t: t.unflatten(0, (2, 2))) for protein in (a, b)]
    assert_same(metrics.reconstruction_report(*squared), {name: value.view(2, 2) for name, value in expected.items()})


def test_interchangeable_atoms_may_come_in_either_order():
    x, y, mask, types = pair()
    swapped = swap_pairs(x, types)
    named = torch.tensor([RESIDUE_NAMES[k] in PAIRS for k in types.tolist()])
    assert ((swapped != x).any(-1).any(-1) == named).all() and named.sum() > 40
    for superposed in (True, False):
        value = metrics.all_atom_rmsd(x, y, mask, types, superposed)
        assert torch.equal(metrics.all_atom_rmsd(swapped, y, mask, types, superposed), value)
        other = metrics.all_atom_rmsd(x, swap_pairs(y, types), mask, types, superposed)
        assert other.item() == pytest.approx(value.item(), abs=1e-5)
    assert metrics.lddt(swapped, y, mask, types) == metrics.lddt(x, y, mask, types)
    assert metrics.lddt(swapped, x, mask, types) == 1
    assert metrics.lddt(swapped, x, mask) < 1
    assert metrics.all_atom_rmsd(moved(chain(OPEN)).positions, swapped, mask, types) < 1e-4
    unnamed = torch.full_like(types, UNKNOWN)
    assert metrics.all_atom_rmsd(x, swapped, mask, unnamed) > 0.3


def test_both_pairs_of_a_ring_swap_together_and_half_a_pair_stays():
    protein = chain(OPEN)
    rings = protein.residue_type == TYPE_OF["TYR"]
    cd1, cd2 = ATOM14["TYR"].index("CD1"), ATOM14["TYR"].index("CD2")
    half = protein.positions.clone()
    half[rings, cd1], half[rings, cd2] = protein.positions[rings, cd2], protein.positions[rings, cd1]
    args = protein.positions, protein.atom_mask, protein.residue_type
    assert metrics.all_atom_rmsd(half, *args) > 0.1
    mask = protein.atom_mask.clone()
    mask[rings, cd1] = False
    swapped = swap_pairs(protein.positions, protein.residue_type)
    kept = metrics.best_order(swapped, protein.positions, mask, protein.residue_type)
    assert torch.equal(kept[rings], swapped[rings])


def test_mirror_images_are_found():
    protein = chain(OPEN)
    mirrored = protein.with_positions(protein.positions * torch.tensor([1.0, 1.0, -1.0]))
    pairs = stack([protein, moved(mirrored)]), stack([protein, protein])
    assert metrics.reconstruction_report(*pairs)["mirrored"].tolist() == [0, 1]
    assert metrics.ca_rmsd(mirrored.positions, protein.positions, protein.atom_mask) > 5
    right, left = metrics.validity_report(protein), metrics.validity_report(mirrored)
    assert right["chirality_errors"] == right["left_handed_helices"] == 0
    assert left["chirality_errors"] == protein.atom_mask[:, CB].sum()
    assert left["left_handed_helices"] >= 5
    assert left["rama_outliers"] > 0.2 and right["rama_outliers"] == 0
    assert left["bond_outliers"] == right["bond_outliers"]


# One number at a time


def test_identical_structures_are_perfect_with_finite_gradients():
    protein = chain(OPEN).to(torch.float64)
    args = protein.positions, protein.atom_mask
    report = metrics.reconstruction_report(protein, protein)
    perfect = {"gdt_ts", "gdt_ha", "tm_score", "lddt", "ca_lddt", "residue_accuracy"}
    assert all(report[name].item() == pytest.approx(1) for name in perfect)
    assert all(report[name].item() == pytest.approx(0, abs=1e-6) for name in REPORT - perfect)
    predicted = protein.positions.clone().requires_grad_()
    loss = metrics.all_atom_rmsd(predicted, *args, protein.residue_type) + metrics.ca_rmsd(predicted, *args)
    loss.backward()
    assert predicted.grad.isfinite().all()


def test_rmsd_has_the_gradient_of_finite_differences():
    """Although the superposition is a constant to autograd."""
    protein = chain(OPEN).crop(0, 3).to(torch.float64)
    predicted = noisy(protein, 0.5).positions.requires_grad_()
    mask, types = protein.atom_mask, protein.residue_type
    assert torch.autograd.gradcheck(lambda x: metrics.all_atom_rmsd(x, protein.positions, mask, types), predicted)


def test_nothing_to_compare_is_nan_and_broken_numbers_do_not_raise():
    protein = chain(OPEN).crop(0, 30)
    nothing = protein.replace(atom_mask=torch.zeros_like(protein.atom_mask))
    report = metrics.reconstruction_report(protein, nothing)
    assert all(report[name].isnan() for name in REPORT - {"mirrored"})
    broken = protein.replace(positions=torch.full_like(protein.positions, torch.nan))
    report = metrics.reconstruction_report(broken, protein)
    assert report["ca_rmsd"].isnan() and report["tm_score"].isnan() and report["lddt"] == 0
    assert report["bond_outliers"] == report["rama_outliers"] == 1


def test_scores_are_per_residue_of_the_target():
    protein = chain(OPEN)
    missing = protein.replace(atom_mask=protein.atom_mask & (torch.arange(214) < 107)[:, None])
    report = metrics.reconstruction_report(missing, protein)
    assert report["tm_score"].item() == pytest.approx(0.5, abs=1e-5)
    assert report["gdt_ts"].item() == pytest.approx(0.5, abs=1e-5)
    assert metrics.tm_score(missing.positions, protein.positions, missing.atom_mask).item() == pytest.approx(1)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 17])
def test_short_chains(length):
    protein = chain(OPEN).crop(0, length)
    report = metrics.reconstruction_report(noisy(protein, 0.1), protein)
    assert report["ca_rmsd"] < 0.3
    assert report["tm_score"].isnan() if length < 3 else 0.3 < report["tm_score"] <= 1
    assert report["left_handed_helices"] == 0


def test_shapes_that_differ_are_named():
    with pytest.raises(ValueError, match="pad or crop"):
        metrics.reconstruction_report(chain(OPEN), chain(COBROTOXIN))


def test_residue_accuracy():
    predicted, true = torch.tensor([[0, 1, 2, 3], [5, 5, 5, 20]]), torch.tensor([[0, 1, 2, 4], [5, 6, 7, 20]])
    accuracy = metrics.residue_accuracy(predicted, true, true != UNKNOWN)
    assert accuracy.tolist() == pytest.approx([3 / 4, 1 / 3])


def test_atoms_of_different_residues_correspond_by_name():
    true = Protein.from_atoms(torch.zeros(3, 14, 3), torch.ones(3, 14, dtype=torch.bool), types("ILE", "TRP", "GLY"))
    slots = torch.arange(14.0)[:, None].expand(3, 14, 3)
    predicted = Protein.from_atoms(slots, torch.ones(3, 14, dtype=torch.bool), types("LEU", "PHE", "ALA"))
    positions, shared = match_names(predicted, true)
    names = [{ATOM14[name][slot] for slot in row.nonzero()[:, 0]} for name, row in zip(("ILE", "TRP", "GLY"), shared)]
    backbone = {"N", "CA", "C", "O"}
    assert names == [backbone | {"CB", "CD1"}, backbone | {"CB", "CG", "CD1", "CD2"} | {"CE2"}, backbone]
    assert positions[0, ATOM14["ILE"].index("CD1"), 0] == ATOM14["LEU"].index("CD1")
    assert positions[1, ATOM14["TRP"].index("CE2"), 0] == ATOM14["PHE"].index("CE2")


def types(*names: str) -> torch.Tensor:
    return torch.tensor([TYPE_OF[name] for name in names])


def test_real_structures_are_valid():
    report = metrics.validity_report(stack([chain(OPEN), chain(CLOSED)]))
    assert report.keys() == VALIDITY
    assert all((report[name] == 0).all() for name in VALIDITY - {"rama_favoured"})
    assert (report["rama_favoured"] > 0.95).all()


def test_bond_and_angle_outliers_are_counted():
    protein = chain(OPEN)
    lengths = metrics.backbone_bonds(protein.positions, protein.atom_mask)
    atoms, _ = read(OPEN)
    n, ca, c = (atoms.coord[atoms.atom_name == name] for name in ("N", "CA", "C"))
    assert np.allclose(lengths["C-N"][0], struc.distance(c[:-1], n[1:]), atol=1e-4)
    angles = metrics.backbone_angles(protein.positions, protein.atom_mask)
    assert np.allclose(angles["C-N-CA"][0], np.rad2deg(struc.angle(c[:-1], n[1:], ca[1:])), atol=1e-2)
    assert np.allclose(angles["N-CA-C"][0], np.rad2deg(struc.angle(n, ca, c)), atol=1e-2)
    stretched = protein.positions.clone()
    stretched[7, O] += (stretched[7, O] - stretched[7, C]) * 0.2  # one C-O bond too long, no angle changed
    assert metrics.bond_outliers(stretched, protein.atom_mask).item() == pytest.approx(1 / (3 * 214 + 213))
    assert metrics.angle_outliers(stretched, protein.atom_mask) == 0


def test_chain_breaks_of_the_reference_are_excluded():
    protein = chain(OPEN)
    apart = protein.positions + 10.0 * (torch.arange(214) > 99)[:, None, None]
    gap = protein.with_positions(apart)
    linked = metrics.chain_links(gap.positions, gap.atom_mask)
    assert (~linked).nonzero().flatten().tolist() == [99]
    free = metrics.validity_report(gap)
    assert free["chain_breaks"] == 1 and free["bond_outliers"] > 0
    known = metrics.validity_report(gap, linked)
    assert known["chain_breaks"] == known["bond_outliers"] == known["angle_outliers"] == known["rama_outliers"] == 0
    assert metrics.reconstruction_report(gap, gap)["chain_breaks"] == 0
    assert metrics.reconstruction_report(gap, protein)["chain_breaks"] == 1


def test_clashes_are_counted_per_thousand_atoms():
    protein = chain(OPEN)
    args = protein.atom_mask, protein.residue_type
    assert metrics.clashes(protein.positions, *args) == 0
    met = protein.residue_type == TYPE_OF["MET"]
    first, last = met.nonzero().flatten()[[1, -1]].tolist()
    touching = protein.positions.clone()
    sd = ATOM14["MET"].index("SD")
    offset = touching[first, sd] - protein.positions.mean((0, 1))
    far = protein.positions.mean((0, 1)) + 200 * offset / offset.norm()  # away from everything else
    touching[first, sd], touching[last, sd] = far, far + torch.tensor([2.8, 0.0, 0.0])
    count = protein.atom_mask.sum().item()
    assert metrics.clashes(touching, *args).item() == pytest.approx(1000 / count)  # 2.8 < 0.8 (1.8 + 1.8) = 2.88
    touching[last, sd] += torch.tensor([0.1, 0.0, 0.0])
    assert metrics.clashes(touching, *args) == 0


def test_disulfides_and_cis_neighbours_are_not_clashes_but_other_sulfurs_are():
    protein = chain(COBROTOXIN)
    sulfur = protein.positions[protein.residue_type == TYPE_OF["CYS"]][:, ATOM14["CYS"].index("SG")]
    bonded = (torch.cdist(sulfur, sulfur) < 2.2).triu(1).sum()
    assert bonded == 4
    assert metrics.clashes(protein.positions, protein.atom_mask, protein.residue_type) == 0
    # the same atoms named serine (OG): 2.0 Å between oxygens is a clash
    serines = torch.where(protein.residue_type == TYPE_OF["CYS"], TYPE_OF["SER"], protein.residue_type)
    clashing = metrics.clashes(protein.positions, protein.atom_mask, serines)
    assert clashing.item() == pytest.approx(4000 / protein.atom_mask.sum().item())


def test_ca_clashes_leave_out_neighbours():
    ca = torch.zeros(5, 14, 3)
    ca[:, CA, 0] = torch.tensor([0.0, 2.9, 10.0, 20.0, 12.0])  # 0-1 are neighbours, 2-4 are not
    mask = torch.arange(14).expand(5, 14) == CA
    assert metrics.ca_clashes(ca, mask) == 1


def test_omega_outliers():
    protein = chain(OPEN)
    axis = protein.positions[50, C] - protein.positions[50, CA]
    axis = axis / axis.norm()
    turn = torch.linalg.matrix_exp(math.radians(40) * torch.linalg.cross(torch.eye(3), axis.expand(3, 3)))
    twisted = protein.positions.clone()
    centre = protein.positions[50, C]
    twisted[51:] = (twisted[51:] - centre) @ turn.T + centre  # psi of 50 only
    assert metrics.omega_outliers(twisted, protein.atom_mask) == 0
    nitrogen = protein.positions[51, N]
    axis = (nitrogen - centre) / (nitrogen - centre).norm()
    turn = torch.linalg.matrix_exp(math.radians(40) * torch.linalg.cross(torch.eye(3), axis.expand(3, 3)))
    twisted = protein.positions.clone()
    twisted[51:] = (twisted[51:] - nitrogen) @ turn.T + nitrogen
    assert metrics.omega_outliers(twisted, protein.atom_mask).item() == pytest.approx(1 / 213)


def test_one_d_amino_acid_is_counted():
    protein = chain(OPEN)
    positions = protein.positions.clone()
    n, ca, c, cb = (positions[30, slot] for slot in (N, CA, C, CB))
    normal = torch.linalg.cross(n - ca, c - ca)
    positions[30, CB] = cb - 2 * (cb - ca) @ normal / normal.square().sum() * normal
    assert metrics.chirality_errors(positions, protein.atom_mask) == 1


def test_left_handed_helices_need_four_consecutive_torsions():
    def helix(turn: float, residues: int) -> tuple[torch.Tensor, torch.Tensor]:
        angle = math.radians(turn) * torch.arange(residues)
        positions = torch.zeros(residues, 14, 3)
        positions[:, CA] = torch.stack([2.3 * angle.cos(), 2.3 * angle.sin(), 1.5 * torch.arange(residues)], -1)
        return positions, torch.arange(14).expand(residues, 14) == CA

    assert metrics.left_handed_helices(*helix(100, 20)) == 0
    assert metrics.left_handed_helices(*helix(-100, 20)) == 1
    assert metrics.left_handed_helices(*helix(-100, 7)) == 1
    assert metrics.left_handed_helices(*helix(-100, 6)) == 0
    linked = torch.arange(19) != 9
    assert metrics.left_handed_helices(*helix(-100, 20), linked) == 2


def test_side_chain_bond_rmsd():
    protein = chain(OPEN)
    assert metrics.side_chain_bond_rmsd(noisy(protein, 0.1).positions, *_others(protein)) > 0.05
    longer = protein.positions.clone()
    alanine = protein.residue_type == TYPE_OF["ALA"]
    bond = longer[alanine, CB] - longer[alanine, CA]
    longer[alanine, CB] += 0.3 * bond / bond.norm(dim=-1, keepdim=True)
    only = protein.replace(atom_mask=protein.atom_mask & alanine[:, None])
    assert metrics.side_chain_bond_rmsd(longer, *_others(only)).item() == pytest.approx(0.3, abs=1e-4)


def _others(protein: Protein) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return protein.positions, protein.atom_mask, protein.residue_type


def test_ramachandran_classes_and_bins():
    sequence = types("ALA", "PRO", "PRO", "GLY", "PRO", "ALA")
    assert residue_class(sequence).tolist() == [3, 2, 2, 1, 2, 0]
    degrees = torch.tensor([-180.0, -171.0, -169.0, 0.0, 179.9, 180.0])
    assert torsion_bins(torch.deg2rad(degrees.double())).tolist() == [0, 0, 1, 18, 35, 0]


def test_unusual_torsions_go_to_the_nearest_usual_ones():
    kinds = torch.tensor([TYPE_OF["ALA"], TYPE_OF["GLY"], TYPE_OF["PRO"], TYPE_OF["LEU"]]).repeat(500)
    torsions = (torch.rand(2000, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1) * math.pi
    usual = usual_torsions(torsions, kinds)
    bins, new_bins = torsion_bins(torsions), torsion_bins(usual)
    was = _table()[residue_class(kinds), bins[:, 0], bins[:, 1]] < USUAL
    assert 0.1 < was.float().mean() < 0.6 and torch.equal(usual[was], torsions[was])
    assert (_table()[residue_class(kinds), new_bins[:, 0], new_bins[:, 1]] < USUAL).all()
    # round the torus: a strand's psi of -175 degrees is near 175
    edge = usual_torsions(torch.deg2rad(torch.tensor([[-120.0, -155.0]])), kinds[:1])
    assert abs(float(torch.rad2deg(edge[0, 1]))) > 155


def test_ramachandran_knows_glycine_from_other_residues():
    """A residue at phi 80, psi -170 is ordinary for glycine and unheard of for the rest."""
    protein = chain(OPEN)
    coverage, present = ramachandran_coverage(*_others(protein.replace()))
    assert present.sum() == 212 and (coverage[present] < 0.9995).all()
    glycine = protein.residue_type == TYPE_OF["GLY"]
    alanine = torch.where(glycine, TYPE_OF["ALA"], protein.residue_type)
    assert metrics.ramachandran_outliers(protein.positions, protein.atom_mask, alanine) > 0
    favoured = metrics.ramachandran_favoured(*_others(protein))
    assert favoured > metrics.ramachandran_favoured(protein.positions, protein.atom_mask, alanine)


def test_reports_under_autocast_keep_full_precision():
    protein = chain(OPEN).crop(0, 60)
    predicted = noisy(protein, 0.2)
    expected = metrics.reconstruction_report(predicted, protein)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(metrics.reconstruction_report(predicted, protein), expected, 0.0)
    assert metrics.validity_report(predicted.to(torch.bfloat16))["clashes"].dtype == torch.float32


def test_all_is_complete():
    assert all(hasattr(metrics, name) for name in metrics.__all__)
    assert list(metrics.__all__) == sorted(metrics.__all__)
