"""The released weights: what their cards promise, on structures that are at hand everywhere."""

import pytest
import torch
from adk import CLOSED, COBROTOXIN, OPEN, read

from ophio.autoencoder import Autoencoder
from ophio.foldability import foldability_of
from ophio.geometry import random_rotation
from ophio.metrics import is_mirrored, reconstruction_report
from ophio.pretrained import available, find, load_diffusion, read_card
from ophio.protein import Protein
from ophio.residue import swap_pairs
from ophio.samples import released_settings
from ophio.sampling import generate, sample_statistics

MAX_MEGABYTES = 20


def chains() -> dict[str, Protein]:
    """Natural chains of at most 128 residues."""
    whole = {name: read(name)[1] for name in (OPEN, CLOSED, COBROTOXIN)}
    return {
        f"{name} from {start}": p.crop(start, start + 128)
        for name, p in whole.items()
        for start in (0, 86)
        if p.num_residues > start
    }


@pytest.fixture(scope="module")
def mini() -> Autoencoder:
    return Autoencoder.from_pretrained("mini")


def moved(protein: Protein, rotation: torch.Tensor, shift: torch.Tensor) -> Protein:
    return protein.with_positions(protein.rotate(rotation).positions + shift)


def test_mini_is_released():
    assert "mini" in available()


@pytest.mark.parametrize("name", available())
def test_card_is_complete_and_weights_are_small(name):
    card = read_card(name)
    own = ("autoencoder", "encoder", "lengths", "bands", "sampling") if "autoencoder" in card else ("chains", "test")
    for key in ("description", "parameters", "steps", "hardware", "weights_sha256", *own):
        assert key in card, key
    assert find(name).with_suffix(".safetensors").stat().st_size < MAX_MEGABYTES * 1e6
    assert not any(part in str(card) for part in ("/tmp", "/home", "/work", "/root")), "a path of the training machine"


@torch.no_grad()
@pytest.mark.parametrize("chain", chains())
def test_mini_reconstructs_natural_chains(mini, chain):
    true = chains()[chain]
    predicted = mini.decode(mini.encode(true))
    report = reconstruction_report(predicted, true)
    assert report["ca_rmsd"] < 0.4 and report["all_atom_rmsd"] < 0.8
    assert report["residue_accuracy"] > 0.9
    assert report["bond_outliers"] < 0.03 and report["chirality_errors"] == 0
    assert not is_mirrored(predicted.positions, true.positions, true.atom_mask)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_mini_is_equivariant_protein_in_protein_out(dtype, tolerance):
    mini = Autoencoder.from_pretrained("mini").to(dtype)
    generator = torch.Generator().manual_seed(0)
    for protein in chains().values():
        protein = protein.center().to(dtype)
        rotation = random_rotation((), generator, torch.float64).to(dtype)
        shift = torch.tensor([5.0, -7.0, 3.0], dtype=dtype)
        still = mini.decode(mini.encode(protein))
        turned = mini.decode(mini.encode(moved(protein, rotation, shift)))
        assert torch.equal(still.residue_type, turned.residue_type)
        assert (moved(still, rotation, shift).positions - turned.positions).abs().max() < tolerance


@torch.no_grad()
def test_order_of_interchangeable_atoms_changes_nothing(mini):
    protein = chains()[f"{OPEN} from 0"]
    swapped = protein.with_positions(swap_pairs(protein.positions, protein.residue_type))
    assert not torch.equal(protein.positions, swapped.positions)
    difference = mini.decode(mini.encode(protein)).positions - mini.decode(mini.encode(swapped)).positions
    assert difference.abs().max() < 1e-4


@torch.no_grad()
def test_padding_changes_nothing(mini):
    protein = chains()[f"{COBROTOXIN} from 0"]
    length = protein.num_residues
    padded = mini.decode(mini.encode(protein.pad(length + 21))).crop(0, length)
    assert (padded.positions - mini.decode(mini.encode(protein)).positions).abs().max() < 1e-4


@pytest.mark.parametrize("name", [name for name in available() if "autoencoder" in read_card(name)])
def test_released_diffusion_gives_chains_of_plausible_size_and_geometry(name):
    diffusion, autoencoder = load_diffusion(name)
    settings = released_settings(read_card(name), {})
    foldability = foldability_of(name) if settings.drafts > 1 else None
    drawn = generate(diffusion, autoencoder, [60, 80, 100], range(3), settings, foldability)
    found = sample_statistics([sample.protein for sample in drawn])
    assert found["valid_residues"] > 0.85 and found["left_handed_helices"] == found["chirality_errors"] == 0
    assert 1.8 < found["compactness"] < 3.2 and found["helix"] + found["strand"] > 0.1


def test_released_models_stay_within_the_package_size():
    sizes = [find(name).with_suffix(".safetensors").stat().st_size for name in available()]
    assert sum(sizes) < 60e6
