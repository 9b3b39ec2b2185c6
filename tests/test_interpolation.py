"""Paths between conformations: Clouds, atoms, baselines, pairing, reports, the command, and every bad input."""

import json
import math
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from adk import CLOSED, COBROTOXIN, OPEN, read
from biotite.structure.io.dcd import DCDFile
from biotite.structure.io.xtc import XTCFile

from ophio import interpolation
from ophio.autoencoder import Autoencoder
from ophio.cli import main
from ophio.cloud import Cloud
from ophio.cloud_paths import PATHS, blend, linear, rigid, rotation_powers, spherical
from ophio.conformations import Group, Journey, pair_summary, rank_correlation, smoothness_row
from ophio.constants import CB, TYPE_OF
from ophio.errors import UserError
from ophio.geometry import transform
from ophio.interpolation import (
    METHODS,
    cartesian_line,
    finished,
    interpolate,
    path_through,
    superposed,
    torsion_path,
    unbroken,
)
from ophio.internal_coordinates import InternalCoordinates, buildable, internal_coordinates, positions_of
from ophio.io import StructureWarning, read_models, read_structure, write_structure
from ophio.metrics import all_atom_rmsd, ca_rmsd, similarity, validity_report
from ophio.metrics.core import core_superposition
from ophio.pairing import common_links, common_residues
from ophio.path_report import LATENT, VALIDITY, baselines, closest_approach, path_report
from ophio.pretrained import available, load, save
from ophio.protein import Protein, stack
from ophio.residue import swap_pairs
from ophio.testing import move, random_cloud, random_motion

TINY = {"channels": [8, 8, 8, 8], "strides": [2, 2, 2], "latent_channels": 6, "latent_lmax": 1}
ROOT = Path(__file__).parents[1]


@cache
def tiny() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(**TINY).eval()


def adk(name: str) -> Protein:
    return read(name)[1].replace(name=Path(name).stem)


@cache
def short_pair() -> tuple[Protein, Protein]:
    """50 residues of adenylate kinase, open and closed: the lid moves."""
    return tuple(superposed([adk(name).crop(100, 150) for name in (OPEN, CLOSED)]))


def clouds(seed: int = 0, lmax: int = 2) -> tuple[Cloud, Cloud]:
    """Two of the same mask, in float64."""
    batch = random_cloud(num_nodes=12, lmax=lmax, channels=5, seed=seed)
    return tuple(Cloud(batch.positions[k], batch.features[k], batch.mask[1]) for k in (0, 1))


# --------------------------------------------------------------------------------------------------- paths of Clouds


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_path_joins_its_ends(path):
    a, b = clouds()
    way = path(a, b, torch.linspace(0, 1, 5, dtype=torch.float64))
    for found, expected in ((0, a), (-1, b)):
        real = a.mask
        assert torch.allclose(way.positions[found][real], expected.positions[real], atol=1e-9)
        assert torch.allclose(way.features[found][real], expected.features[real], atol=1e-9)
    assert torch.equal(way.mask, a.mask.expand(5, -1))
    middle = way.positions[2] - 0.5 * (a.positions + b.positions)
    assert (middle[a.mask].abs().max() < 1e-9) == (path not in (rigid, blend))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_path_turns_with_its_ends(path):
    (a, b), motion = clouds(seed=5), random_motion(seed=3)
    times = torch.linspace(0, 1, 5, dtype=torch.float64)
    expected = move(path(a, b, times), *motion)
    found = path(move(a, *motion), move(b, *motion), times)
    assert torch.allclose(found.positions[:, a.mask], expected.positions[:, a.mask], atol=1e-8)
    assert torch.allclose(found.features, expected.features, atol=1e-8)
    assert (found.features[2] - found.features[0]).abs().max() > 0.1


def test_a_path_of_a_rigid_body_is_a_rotation():
    """Half-way, the body has turned by half the angle, and no distance has changed; a straight line would shrink it."""
    a = clouds(lmax=2)[0]
    a = a.replace(mask=torch.ones_like(a.mask))
    rotation, translation = random_motion(seed=2)
    b = move(a, rotation, translation)
    times = torch.tensor([0.5], dtype=torch.float64)
    half = rotation_powers(rotation, times)[0]
    centre = a.positions.mean(0)
    expected = move(a.replace(positions=a.positions - centre), half, 0.5 * (centre + b.positions.mean(0)))
    way = rigid(a, b, times)
    assert torch.allclose(way.positions[0], expected.positions, atol=1e-8)
    assert torch.allclose(way.features[0], expected.features, atol=1e-8)
    shrunk = torch.pdist(linear(a, b, times).positions[0]).mean() / torch.pdist(a.positions).mean()
    assert shrunk < 0.9


def test_a_blend_is_half_way_between_rigid_and_linear():
    (a, b), times = clouds(), torch.tensor([0.3], dtype=torch.float64)
    way, expected = (
        blend(a, b, times),
        [
            0.5 * (getattr(rigid(a, b, times), name) + getattr(linear(a, b, times), name))
            for name in ("positions", "features")
        ],
    )
    assert torch.allclose(way.positions, expected[0]) and torch.allclose(way.features, expected[1])


def test_spherical_paths_keep_the_norms():
    a, b = clouds()
    way = spherical(a, b, torch.tensor([0.25], dtype=torch.float64))
    expected = torch.lerp(a.features[:, 1:4].norm(dim=1), b.features[:, 1:4].norm(dim=1), 0.25)
    assert torch.allclose(way.features[0, :, 1:4].norm(dim=1), expected, atol=1e-9)
    opposite = spherical(a, a.replace(features=-a.features), torch.tensor([0.5], dtype=torch.float64))
    assert opposite.features.isfinite().all()


def test_masked_nodes_do_not_matter():
    a, b = clouds(seed=4)
    times = torch.tensor([0.3], dtype=torch.float64)
    noisy = a.replace(positions=a.positions + 100 * ~a.mask[:, None], features=a.features + 9 * ~a.mask[:, None, None])
    for path in PATHS.values():
        one, other = path(a, b, times), path(noisy, b, times)
        assert torch.allclose(one.positions[0][a.mask], other.positions[0][a.mask], atol=1e-9)
        assert torch.allclose(one.features[0][a.mask], other.features[0][a.mask], atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-4, 1.0, math.pi - 1e-3, math.pi])
def test_rotation_powers(angle):
    axis = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, -0.5], dtype=torch.float64), dim=0)
    cross = torch.linalg.cross(axis.expand(3, 3), torch.eye(3, dtype=torch.float64)).mT

    def turn(angle: float) -> torch.Tensor:
        return torch.eye(3, dtype=torch.float64) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross

    found = rotation_powers(turn(angle), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert torch.allclose(found[0], torch.eye(3, dtype=torch.float64), atol=1e-7)
    assert torch.allclose(found[2], turn(angle), atol=1e-7)
    assert torch.allclose(found[1] @ found[1], turn(angle), atol=1e-7)


def test_scalars_alone_do_not_turn():
    a, b = clouds(lmax=0)
    with pytest.raises(UserError, match="linear"):
        rigid(a, b, torch.tensor([0.5], dtype=torch.float64))
    assert linear(a, b, torch.tensor([0.5], dtype=torch.float64)).features.shape == (1, 12, 1, 5)


# -------------------------------------------------------------------------------------------- internal coordinates


@pytest.mark.parametrize("name", [OPEN, CLOSED, COBROTOXIN])
def test_chains_are_rebuilt_from_internal_coordinates(name):
    protein = adk(name)
    types = protein.residue_type
    mask = buildable(protein.atom_mask, types)
    assert torch.equal(mask, protein.atom_mask)
    built = positions_of(internal_coordinates(protein.positions.double(), types), types)
    assert float(all_atom_rmsd(built, protein.positions.double(), mask, types)) < 1e-3


def test_atoms_measured_from_missing_ones_are_left_out():
    protein = adk(OPEN)
    arginine = int((protein.residue_type == TYPE_OF["ARG"]).nonzero()[0])
    mask = protein.atom_mask.clone()
    mask[arginine, CB] = False
    left = buildable(mask, protein.residue_type)
    assert left[arginine].sum() == 4 and torch.equal(left[:arginine], protein.atom_mask[:arginine])


def test_baselines_join_the_structures():
    a, b = short_pair()
    for line in (cartesian_line, torsion_path):
        frames = line(a, b, 7)
        assert len(frames) == 7
        for frame, end in ((frames[0], a), (frames[-1], b)):
            both = frame.atom_mask & end.atom_mask
            assert float(all_atom_rmsd(frame.positions, end.positions, both, a.residue_type)) < 1e-3
    bent, straight = (validity_report(line(a, b, 7)[3]) for line in (torsion_path, cartesian_line))
    assert float(bent["bond_outliers"]) == 0 and float(straight["bond_outliers"]) > 0.02


# -------------------------------------------------------------------------------------------------- superposition


def test_domains_are_superposed_on_what_does_not_move():
    a, b = adk(OPEN), adk(CLOSED)
    rotation, translation = random_motion(seed=1, dtype=torch.float32)
    found = core_superposition(transform(b.ca, rotation, translation), a.ca, a.residue_mask)
    exact = similarity(b.positions, a.positions, a.atom_mask).tm_score
    assert float(found.tm_score) == pytest.approx(float(exact), abs=0.005)
    placed = transform(transform(b.ca, rotation, translation), found.rotation, found.translation)
    assert ((placed - a.ca).norm(dim=-1) < 2).sum() > 100
    batch = core_superposition(torch.stack([a.ca, b.ca]), a.ca, a.residue_mask)
    assert float(batch.tm_score[0]) == pytest.approx(1, abs=1e-4)
    assert float(batch.tm_score[1]) == pytest.approx(float(found.tm_score), abs=1e-3)
    assert core_superposition(a.ca[:2], b.ca[:2], a.residue_mask[:2]).tm_score.isnan()


# ---------------------------------------------------------------------------------------------------- structures


@pytest.mark.parametrize("method", METHODS)
def test_interpolate(method):
    a, b = short_pair()
    model = tiny()
    frames = interpolate(a, b, model, 5, method, finish=False)
    assert len(frames) == 5
    for frame in frames:
        assert torch.equal(frame.residue_type, a.residue_type) and torch.equal(frame.residue_number, a.residue_number)
        assert frame.positions.isfinite().all() and frame.chain_id == a.chain_id
    with torch.no_grad():
        for frame, end in ((frames[0], a), (frames[-1], b)):
            made = model.decode_atoms(model.encode(end.map(lambda t: t[None])), end.residue_type[None]).positions[0]
            assert float(ca_rmsd(frame.positions, made, frame.atom_mask)) < 1e-3


def test_a_path_turns_with_its_structures():
    """Protein in, protein out, in float64: A and B moved apart by any motions; the path follows A."""
    model = Autoencoder(**TINY).double().eval()
    a, b = (protein.to(torch.float64) for protein in short_pair())
    rotation, translation = random_motion(seed=4)
    motions = (rotation, translation), random_motion(seed=7)
    elsewhere = [p.with_positions(transform(p.positions, *m)) for p, m in zip((a, b), motions, strict=True)]
    straight = interpolate(a, b, model, 3, finish=False)
    turned = interpolate(*elsewhere, model, 3, finish=False)
    for one, other in zip(straight, turned, strict=True):
        expected = one.with_positions(transform(one.positions, rotation, translation))
        assert torch.allclose(expected.positions, other.positions, atol=1e-5)


def test_pinned_ends_are_the_structures():
    a, b = short_pair()
    free, pinned = (interpolate(a, b, tiny(), 5, pin_ends=pin, finish=False) for pin in (False, True))
    for k, end in ((0, a), (-1, b)):
        mask = pinned[k].atom_mask & end.atom_mask
        exact = all_atom_rmsd(pinned[k].positions, end.positions, mask, end.residue_type, superimpose=False)
        assert float(exact) < 1e-4 and float(ca_rmsd(free[k].positions, end.positions, mask)) > 0.1
    assert float((pinned[0].positions - a.positions)[a.atom_mask].abs().max()) < 1e-4  # by name, too


def test_the_geodesic_is_shorter():
    a, b = short_pair()

    def energy(method: str) -> float:
        frames = path_through([a, b], tiny(), 6, method, finish=False)
        return float(sum((p.ca - q.ca).square().sum() for p, q in zip(frames, frames[1:], strict=False)))

    assert energy("geodesic") < 0.999 * energy(interpolation.METHOD)
    assert len(path_through([a, b], tiny(), 2, "geodesic", finish=False)) == 2


def test_finished_frames_have_sound_bonds_and_no_clashes():
    a, b = short_pair()
    rough = cartesian_line(a, b, 5)[1:4]
    links = common_links([a, b])
    before, after = (validity_report(stack(frames), links.expand(3, -1)) for frames in (rough, finished(rough, links)))
    assert before["bond_outliers"].max() > 0.02
    for name in ("bond_outliers", "angle_outliers", "clashes", "chain_breaks"):
        assert after[name].max() == 0, name


def test_a_chain_of_structures_passes_through_all():
    a, b = short_pair()
    frames = path_through([a, b, a], tiny(), 4, finish=False)
    assert len(frames) == 7
    assert torch.allclose(frames[0].ca, frames[6].ca, atol=1e-4)
    assert torch.allclose(frames[1].ca, frames[5].ca, atol=1e-3)


def test_interchangeable_atoms_keep_their_place():
    """The names of the two sides of a ring do not change from frame to frame."""
    a, b = short_pair()
    frames = path_through([a, b], tiny(), 9, finish=False)
    for one, other in zip(frames, frames[1:], strict=False):
        kept, swapped = (
            (one.positions - positions).square().sum((-2, -1))
            for positions in (other.positions, swap_pairs(other.positions, other.residue_type))
        )
        assert (kept <= swapped + 1e-3).all() and (kept < swapped - 1).any()


# ------------------------------------------------------------------------------------------------- what is measured


def test_report_of_the_cartesian_line():
    a, b = superposed([adk(OPEN), adk(CLOSED)])
    report = path_report(cartesian_line(a, b, 7), [a, b], 7)
    path, rows = report["path"], report["frames"]
    direct = float(ca_rmsd(a.positions, b.positions, a.atom_mask))
    assert [row["frame"] for row in rows] == list(range(1, 8)) and rows[0]["step"] == 0
    assert rows[0]["rmsd_from"] < 1e-3 and rows[-1]["rmsd_to"] < 1e-3
    assert rows[0]["rmsd_to"] == pytest.approx(direct, abs=1e-3) == path["direct"]
    assert rows[0]["tm_to"] == pytest.approx(
        float(similarity(a.positions, b.positions, a.atom_mask).tm_score), abs=0.01
    )
    assert path["monotonicity"] == 1 and 1 <= path["detour"] < 1.05 and path["end_rmsd"] < 1e-3
    assert sum(row["step"] for row in rows) == pytest.approx(path["arc_length"], abs=1e-3)
    assert path["middle"]["bond_outliers"] > 0.1 and path["ends"]["bond_outliers"] == 0
    assert path["worst"]["bond_outliers"] == max(row["bond_outliers"] for row in rows)
    back_and_forth = cartesian_line(a, b, 7)
    back_and_forth[3] = back_and_forth[1]
    assert path_report(back_and_forth, [a, b], 7)["path"]["monotonicity"] < 1


def test_report_of_a_chain_of_structures():
    """The frame at the middle structure is an end of the first part, and the distances are those of each part."""
    a, b = short_pair()
    frames = cartesian_line(a, b, 5) + cartesian_line(b, a, 5)[1:]
    report = path_report(frames, [a, b, a], 5)
    assert [row["place"] for row in report["frames"]] == pytest.approx([k / 4 for k in range(9)])
    assert report["frames"][4]["rmsd_to"] < 1e-3 and report["path"]["monotonicity"] == 1
    assert report["path"]["end_rmsd"] < 1e-3
    there = path_report(frames[:5], [a, b], 5)["path"]
    assert report["path"]["direct"] == pytest.approx(2 * there["direct"], rel=1e-4)
    assert report["path"]["middle"]["angle_outliers"] == pytest.approx(there["middle"]["angle_outliers"], abs=1e-4)


def test_closest_approach():
    a, b = superposed([adk(OPEN), adk(CLOSED)])
    frames = cartesian_line(a, b, 9)
    middle = frames[3].crop(20, 180)
    found = closest_approach(frames, a, middle)
    assert found == {"ca_rmsd": 0.0, "frame": 4, "residues": 160}
    with pytest.raises(UserError, match="different sequences"):
        closest_approach(frames, a, adk(COBROTOXIN))


# --------------------------------------------------------------------------------------------------------- bad input


def test_different_sequences_are_refused():
    with pytest.raises(UserError, match="cobrotoxin.*different sequences.*two conformations of one protein"):
        common_residues([adk(OPEN), adk(COBROTOXIN)])


@pytest.mark.parametrize("numbered", [True, False], ids=["numbers", "alignment"])
def test_different_lengths_are_cut(numbered):
    a, b = adk(OPEN), adk(CLOSED).crop(20, 200)
    if not numbered:
        b = b.replace(residue_number=b.residue_number - 20)
    cut_off = "adk_open: 34 of 214 .* N, CA and C: MET 1 - ILE 20, PRO 201 - GLY 214"
    with pytest.warns(StructureWarning, match=cut_off) as said:
        cut = common_residues([a, b])
    assert len(said) == 1
    assert [p.num_residues for p in cut] == [180, 180]
    assert torch.equal(cut[1].ca, b.ca) and torch.equal(cut[1].residue_number, a.residue_number[20:200])


def test_a_loop_missing_in_one_is_cut_from_both():
    a, b = adk(OPEN), adk(CLOSED)
    kept = torch.ones(214, dtype=torch.bool)
    kept[100:106] = False
    with pytest.warns(StructureWarning) as said:
        pair = common_residues([a, b.map(lambda t: t[kept])])
    messages = [str(warning.message) for warning in said]
    assert "adk_open: 6 of 214 residues cut" in messages[0] and "1 gap(s) in the chain" in messages[1]
    assert "101 - " in messages[0] and "100" in messages[1]
    links = common_links(pair)
    assert pair[0].num_residues == 208 and (~links).nonzero().tolist() == [[99]]
    frames = path_through(superposed(pair), load("mini_latent"), 3, finish=False)
    report = path_report(frames, pair, 3)["path"]
    assert report["worst"]["chain_breaks"] == 0 and report["end_rmsd"] < 0.4  # as without the gap


def test_pieces_between_gaps():
    linked = torch.ones(29, dtype=torch.bool)
    assert unbroken(linked) == [(0, 30)]
    linked[[1, 9, 27]] = False
    assert unbroken(linked) == [(0, 10), (10, 30)]
    linked[24] = False
    assert unbroken(linked) == [(0, 10), (10, 25), (25, 30)]
    assert unbroken(torch.zeros(29, dtype=torch.bool))[0] == (0, 4)


def test_a_chain_broken_in_one():
    """All residues are there, but two that follow each other are 20 Å apart in B."""
    a, b = short_pair()
    apart = b.with_positions(b.positions + 20.0 * (torch.arange(50) >= 30)[:, None, None])
    with pytest.warns(StructureWarning, match=r"1 gap\(s\).*after [A-Z]{3} 130"):
        pair = common_residues([a, apart])
    assert not common_links(pair)[29] and pair[0].num_residues == 50
    frames = path_through(superposed(pair), tiny(), 3, finish=False)
    assert all(frame.positions.isfinite().all() for frame in frames)


def test_identical_structures_stay_where_they_are():
    a = short_pair()[0]
    with pytest.warns(StructureWarning, match="the same structure"):
        frames = interpolate(a, a, tiny(), 4, finish=False)
    assert max(float((frame.positions - frames[0].positions).abs().max()) for frame in frames) < 1e-3
    report = path_report(frames, [a, a], 4)["path"]
    assert report["detour"] is None and report["monotonicity"] is None
    json.dumps(report, allow_nan=False)


def test_mirror_images_are_refused():
    a, b = short_pair()
    flipped = b.with_positions(b.positions * torch.tensor([1.0, 1.0, -1.0]))
    with pytest.raises(UserError, match="adk_closed.*D-amino acids.*mirror image"):
        common_residues([a, flipped])
    mask = torch.zeros(14, dtype=torch.bool)
    mask[:4] = True
    bare = [p.replace(atom_mask=p.atom_mask & mask).with_positions(p.positions) for p in (a, a, flipped)]
    with pytest.raises(UserError, match="one of them is mirrored"):
        common_residues([bare[0], bare[1].with_positions(bare[1].positions * torch.tensor([1.0, 1.0, -1.0]))])


def test_five_residues():
    a, b = (protein.crop(20, 25) for protein in short_pair())
    frames = interpolate(a, b, tiny(), 4, finish=False)
    report = path_report(frames, [a, b], 4)
    assert len(frames) == 4 and all(frame.positions.isfinite().all() for frame in frames)
    json.dumps(report, allow_nan=False)
    with pytest.raises(UserError, match="3 residues with N, CA and C in common"):
        interpolate(a.crop(0, 3), b.crop(0, 3), tiny(), 4)


def test_two_thousand_residues():
    """Adenylate kinase ten times over, bent in the middle."""
    protein = adk(OPEN)
    inner = internal_coordinates(protein.positions, protein.residue_type)
    tau, atoms, types = (torch.cat([t] * 10)[:2000] for t in (inner.tau, inner.atoms, protein.residue_type))
    link = torch.cat([inner.link, inner.link[:1]] * 10)[:1999]
    ends = []
    for bend in (0.0, 0.5):
        link[1000, 0, 2] += bend
        positions = positions_of(InternalCoordinates(tau, link, atoms), types)
        ends.append(Protein.from_atoms(positions, torch.cat([protein.atom_mask] * 10)[:2000], types, f"bent by {bend}"))
    frames = interpolate(*ends, tiny(), 3, finish=False)
    report = path_report(frames, superposed(ends), 3)
    assert frames[1].num_residues == 2000 and report["path"]["direct"] > 5
    assert all(frame.positions.isfinite().all() for frame in frames)
    json.dumps(report, allow_nan=False)


def test_missing_side_chains_are_made():
    a, b = short_pair()
    mask = torch.zeros(14, dtype=torch.bool)
    mask[:4] = True
    bare = b.replace(atom_mask=b.atom_mask & mask).with_positions(b.positions)
    frames = interpolate(a, bare, tiny(), 3, pin_ends=True, finish=False)
    assert torch.equal(frames[-1].atom_mask, frames[0].atom_mask) and frames[0].atom_mask.sum() > 300
    assert torch.allclose(frames[-1].positions[:, :4], superposed([a, bare])[1].positions[:, :4], atol=1e-3)
    both = baselines(superposed([a, bare]), 3)
    assert all(not path[1].atom_mask[:, CB].any() for path in both.values())


def test_a_mutation_takes_the_type_of_the_first():
    a, b = short_pair()
    kinds = b.residue_type.clone()
    kinds[10], present = TYPE_OF["ALA"], b.atom_mask.clone()
    present[10, 5:] = False
    mutant = b.replace(residue_type=kinds, atom_mask=present).with_positions(b.positions)
    with pytest.warns(StructureWarning, match="adk_closed: 1 residues are of another type than in adk_open.*ALA 111"):
        pair = common_residues([a, mutant])
    assert pair[1].sequence == a.sequence and pair[1].num_residues == 50
    assert pair[1].atom_mask[10].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_wrong_arguments():
    a, b = short_pair()
    for arguments, said in (((1,), "num=1"), ((5, "straight"), "method straight.*linear")):
        with pytest.raises(UserError, match=said):
            interpolate(a, b, tiny(), *arguments)
    with pytest.raises(UserError, match="two or more"):
        common_residues([a])


# ------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """open.pdb, closed.cif, both.pdb of two models, and a model of random weights."""
    folder = tmp_path_factory.mktemp("files")
    a, b = short_pair()
    write_structure(a, folder / "open.pdb")
    write_structure(b, folder / "closed.cif")
    write_structure([a, b, a], folder / "models.pdb")
    save(tiny(), TINY, folder / "tiny", {"name": "tiny"})
    return folder


@pytest.fixture
def ophio(files, capsys, tmp_path, monkeypatch):
    """Runs `ophio interpolate` in `tmp_path`: exit status, what is printed, what is complained of."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> tuple[int, str, str]:
        status = main(["interpolate", "--model", str(files / "tiny"), *map(str, arguments)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_the_command(ophio, files):
    options = ["--num", 4, "--out", "deep/path.pdb", "--trajectory", "path.dcd", "--reference", files / "models.pdb"]
    status, out, err = ophio(files / "open.pdb", files / "closed.cif", *options)
    assert status == 0 and err == ""
    frames = read_quietly("deep/path.pdb")
    assert len(frames) == 4 and frames[0].sequence == short_pair()[0].sequence
    report = json.loads(Path("deep/path.json").read_text())
    assert report["structures"] == ["open", "closed"] and report["residues"] == 50 and report["num"] == 4
    assert set(report["paths"]) == {LATENT, "cartesian", "torsions"}
    for path in report["paths"].values():
        assert len(path["frames"]) == 4 and set(path["path"]["middle"]) == set(VALIDITY)
    assert [reference["name"] for reference in report["references"]] == [f"models.pdb model {k}" for k in (1, 2, 3)]
    assert report["references"][0]["cartesian"] == {"ca_rmsd": pytest.approx(0, abs=2e-3), "frame": 1, "residues": 50}
    page = Path("deep/path.html").read_text()
    assert page.count("<polyline") == 2 + 3 * len(VALIDITY) and 'max="3"' in page and "setFrame" in page
    trajectory = DCDFile.read("path.dcd").get_coord()
    assert trajectory.shape == (4, int(frames[0].atom_mask.sum()), 3)
    assert np.abs(trajectory[2] - frames[2].positions[frames[2].atom_mask].numpy()).max() < 2e-3
    assert "Closest CA RMSD" in out and "deep/path.html" in out


def read_quietly(path: str) -> list[Protein]:
    """Random weights break chains."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StructureWarning)
        return read_models(path)


def test_a_file_of_models_is_a_path_through_them(ophio, files):
    options = ["--num", 3, "--out", "p.cif.gz", "--no-finish", "--trajectory", "p.xtc"]
    status, _, err = ophio(files / "models.pdb", *options)
    assert status == 0 and err == "" and len(read_quietly("p.cif.gz")) == 5
    report = json.loads(Path("p.json").read_text())
    assert report["structures"] == [f"models model {k}" for k in (1, 2, 3)] and not report["finish"]
    assert XTCFile.read("p.xtc").get_coord().shape[0] == 5


def test_chains_are_chosen(ophio, files, tmp_path):
    a, b = short_pair()
    write_structure(b.replace(chain_id="B"), tmp_path / "b.pdb")
    assert ophio(files / "open.pdb", "b.pdb", "--chain", "A,B", "--num", 3, "--out", "p.pdb", "--no-finish")[0] == 0
    status, _, err = ophio(files / "open.pdb", "b.pdb", "--chain", "B", "--num", 3, "--out", "p.pdb")
    assert status == 2 and "no protein chain B: it has" in err
    status, _, err = ophio(files / "open.pdb", "b.pdb", "--chain", "A,B,C", "--out", "p.pdb")
    assert status == 2 and "3 chain ids for 2 files" in err


def test_pinned_ends_in_files(ophio, files):
    options = ["--num", 3, "--out", "p.pdb", "--pin-ends", "--no-finish"]
    assert ophio(files / "open.pdb", files / "closed.cif", *options)[0] == 0
    first, a = read_quietly("p.pdb")[0], read_structure(files / "open.pdb")
    assert float((first.positions - a.positions)[a.atom_mask].abs().max()) < 2e-3
    assert json.loads(Path("p.json").read_text())["paths"]["latent"]["path"]["end_rmsd"] < 1e-3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["open.pdb", "--out", "p.pdb"], "open.pdb: a single model"),
        (["open.pdb", "closed.cif", "--out", "p.xyz"], "--out p.xyz"),
        (["open.pdb", "closed.cif", "--out", "p.pdb", "--trajectory", "p.trr"], "--trajectory p.trr"),
        (["open.pdb", "absent.pdb", "--out", "p.pdb"], "absent.pdb: cannot be read"),
        (["open.pdb", "closed.cif", "--out", "p.pdb", "--num", "1"], "num=1"),
        (["open.pdb", "closed.cif", "--out", "open.pdb"], "would overwrite"),
        (["open.pdb", "other.pdb", "--out", "p.pdb"], "different sequences"),
        (["open.pdb", "mirror.pdb", "--out", "p.pdb"], "mirror"),
        (["open.pdb", "closed.cif", "--out", "p.pdb", "--device", "tpu"], "--device tpu"),
        (["open.pdb", "closed.cif", "--out", "p.pdb", "--model", "nothing"], "model nothing"),
        (["open.pdb", "closed.cif", "--out", "p.pdb", "--reference", "other.pdb"], "different sequences"),
    ],
)
def test_bad_input_costs_one_line(ophio, files, tmp_path, arguments, said):
    for name in ("open.pdb", "closed.cif"):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    write_structure(adk(COBROTOXIN), tmp_path / "other.pdb")
    b = short_pair()[1]
    write_structure(b.with_positions(b.positions * torch.tensor([1.0, 1.0, -1.0])), tmp_path / "mirror.pdb")
    status, out, err = ophio(*arguments)
    assert status == 2 and out == "" and said in err and len(err.splitlines()) == 1
    assert not Path("p.pdb").exists() and not Path("p.json").exists()


# ---------------------------------------------------------------------------------------------- the released default


@pytest.mark.skipif(interpolation.MODEL not in available(), reason="the default model is not in this installation")
def test_the_default_stays_physical_between_open_and_closed():
    """Adenylate kinase: the middle of the straight line breaks a fifth of all bonds."""
    a, b = superposed(common_residues([adk(OPEN), adk(CLOSED)]))
    model = load(interpolation.MODEL)
    frames = path_through([a, b], model, 5)
    latent, line = (path_report(path, [a, b], 5)["path"] for path in (frames, cartesian_line(a, b, 5)))
    assert latent["end_rmsd"] < 0.4 and latent["monotonicity"] == 1 and latent["worst"]["chain_breaks"] == 0
    assert line["middle"]["bond_outliers"] > 0.2
    assert latent["middle"]["bond_outliers"] < 0.002 and latent["middle"]["angle_outliers"] < 0.005
    assert latent["middle"]["clashes"] < 1


# --------------------------------------------------------------------------------------------------------- the study


def test_the_study_of_a_group():
    a, b = (protein.crop(0, 40) for protein in short_pair())
    between = cartesian_line(a, b, 3)[1]
    distance = np.array([[0, 3.0, 1.5], [3.0, 0, 1.4], [1.5, 1.4, 0]])
    group = Group(7, [a, b, between], ["experimental", "experimental", "md"], distance, 2.0)
    assert group.extremes == (0, 1)
    journey = Journey.of(group, 4)
    pair, approach = journey.rows(cartesian_line(*journey.ends, 4))
    assert pair["group"] == 7 and not pair["bond_outliers_below_line"] and not pair["all"]
    assert approach["intermediates"] == 1 and approach["latent"] == approach["cartesian"]
    assert pair_summary([pair, pair])["bond_outliers_below_line"] == 0
    assert -1 <= smoothness_row(group, tiny())["rank_correlation"] <= 1


def test_rank_correlation():
    assert rank_correlation([1.0, 2.0, 5.0], [10.0, 30.0, 90.0]) == pytest.approx(1)
    assert rank_correlation([1.0, 2.0, 5.0], [9.0, 3.0, 1.0]) == pytest.approx(-1)
