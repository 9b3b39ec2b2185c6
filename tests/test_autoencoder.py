import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from adk import COBROTOXIN, OPEN, moved, read

from ophio.autoencoder import Autoencoder, Latent
from ophio.cloud import Cloud
from ophio.constants import CA, PAIRS, TYPE_OF, UNKNOWN
from ophio.geometry import transform
from ophio.irreps import split
from ophio.layers.sequence import num_windows
from ophio.losses import ReconstructionLoss
from ophio.losses.reconstruction import TERMS
from ophio.protein import Protein, stack
from ophio.residue import atom_exists, swap_pairs
from ophio.testing import move, random_motion, random_protein

SETTINGS = {
    "stride 2": dict(channels=[16, 24, 32, 48], strides=[2, 2, 2]),
    "stride 3": dict(channels=[16, 24, 32], strides=[3, 3], latent_channels=8),
    "no overlap": dict(channels=[16, 24], strides=[4], kernel=4),
    "no downsampling": dict(channels=[16, 24, 24], strides=[1, 1], latent_channels=4),
    "one level": dict(channels=[16], strides=[]),
    "lmax 3": dict(channels=[16, 24, 32], strides=[2, 2], lmax=3, latent_lmax=3),
    "scalar latent": dict(channels=[16, 24], strides=[2], latent_lmax=0),
    "variational": dict(channels=[16, 24, 32], strides=[2, 2], variational=True),
    "spatial": dict(channels=[16, 24, 32], strides=[2, 2], depth=2, neighbours=4),
}
EACH = pytest.mark.parametrize("setting", list(SETTINGS))


@cache
def model(setting: str = "stride 2", dtype: torch.dtype = torch.float64) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(**SETTINGS[setting]).to(dtype).eval()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def native() -> Protein:
    """Two chains of 48 and 33 residues, padded."""
    chains = [read(OPEN)[1].crop(0, 48), read(COBROTOXIN)[1].crop(0, 33)]
    return stack([chain.center() for chain in chains]).to(torch.float64)


def assert_same_latent(one: Latent, other: Latent, tolerance: float = 1e-10) -> None:
    """Real nodes agree; `other` may have more masked ones."""
    shown, mask = slice(one.cloud.num_nodes), one.cloud.mask
    assert torch.equal(mask, other.cloud.mask[:, shown])
    assert not other.cloud.mask[:, one.cloud.num_nodes :].any()
    assert mask.any()
    for name in ("features", "positions"):
        expected, found = getattr(one.cloud, name), getattr(other.cloud, name)[:, shown]
        assert (expected - found)[mask].abs().max() <= tolerance


# Symmetry


@EACH
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_moving_a_protein_moves_its_reconstruction(setting, dtype, tolerance):
    """Protein in, protein out, Å."""
    protein, motion = native(), random_motion()
    autoencoder = model(setting, dtype)
    inputs = [x.to(dtype) for x in (protein, moved(protein, *motion))]
    still, turned = (autoencoder.decode(autoencoder.encode(x)).to(torch.float64) for x in inputs)
    assert torch.equal(still.residue_type, turned.residue_type)
    expected = moved(still, *motion)
    assert (expected.positions - turned.positions).norm(dim=-1).max() < tolerance
    # not a trivial success: atoms leave their CA, and residues of different types are found
    spread = (still.positions - still.ca[..., None, :]).norm(dim=-1)[still.atom_mask]
    assert spread.max() > 1
    assert len(still.residue_type.unique()) > 2


@EACH
def test_moving_a_protein_moves_its_latent(setting):
    protein, motion, autoencoder = native(), random_motion(), model(setting)
    latent = autoencoder.encode(protein)
    expected = replace(latent, cloud=move(latent.cloud, *motion))
    assert_same_latent(expected, autoencoder.encode(moved(protein, *motion)))
    scalars = latent.cloud.features[latent.cloud.mask][:, 0]
    assert (scalars - scalars.mean(0)).abs().max() > 0.1


@EACH
def test_atoms_of_given_types_move_too(setting):
    protein, motion, autoencoder = native(), random_motion(), model(setting)
    types = protein.residue_type
    still, turned = (autoencoder.decode_atoms(autoencoder.encode(x), types) for x in (protein, moved(protein, *motion)))
    assert (still.logits - turned.logits)[protein.residue_mask].abs().max() < 1e-10
    expected = transform(still.positions.flatten(1, 2), *motion).view_as(still.positions)
    paired = torch.isin(types, torch.tensor([TYPE_OF[name] for name in PAIRS]))  # whose names are not yet given
    exists = atom_exists()[types] & ~paired[..., None]
    assert (expected - turned.positions)[exists].abs().max() < 1e-10


def invariants(cloud: Cloud) -> torch.Tensor:
    """Scalars and the scalar products of features of the same degree."""
    scalars, *rest = split(cloud.features[cloud.mask])
    products = [torch.einsum("nmc,nmd->ncd", part, part).flatten(1) for part in rest]
    return torch.cat([scalars.squeeze(1), *products], dim=-1)


@EACH
def test_the_mirror_image_has_another_latent(setting):
    protein, autoencoder = native(), model(setting)
    mirrored = protein.with_positions(protein.positions * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    one, other = (invariants(autoencoder.encode(x).cloud) for x in (protein, mirrored))
    assert (one - other).abs().mean() > 0.01  # no rotation makes them equal


@EACH
def test_names_of_interchangeable_atoms_change_nothing(setting):
    protein, autoencoder = native(), model(setting)
    everywhere = torch.ones_like(protein.residue_type, dtype=torch.bool)
    swapped = protein.replace(positions=swap_pairs(protein.positions, protein.residue_type, everywhere))
    assert not torch.equal(swapped.positions, protein.positions)
    one, other = autoencoder.encode(protein), autoencoder.encode(swapped)
    assert torch.equal(one.cloud.features, other.cloud.features)
    assert torch.equal(one.cloud.positions, other.cloud.positions)
    assert torch.equal(autoencoder.decode(one).positions, autoencoder.decode(other).positions)


# Padding and masks


@EACH
def test_padding_changes_nothing(setting):
    protein, autoencoder = native(), model(setting)
    length, mask = protein.num_residues, protein.residue_mask
    latent = autoencoder.encode(protein)
    decoded, with_types = autoencoder.decode(latent), autoencoder.decode_atoms(latent)
    for extra in (1, 30):
        padded = protein.pad(length + extra)
        garbage = torch.where(padded.atom_mask[..., None], padded.positions, 77.0)
        other = autoencoder.encode(padded.replace(positions=garbage))
        assert_same_latent(latent, other)
        assert latent.numbers_per_residue == pytest.approx(other.numbers_per_residue)
        assert other.cloud.features.isfinite().all()
        assert other.cloud.positions.isfinite().all()
        logits = autoencoder.decode_atoms(other).logits
        assert (with_types.logits - logits[:, :length])[mask].abs().max() < 1e-10
        longer = autoencoder.decode(other)
        assert (decoded.positions - longer.positions[:, :length]).abs().max() < 1e-10
        assert not longer.atom_mask[:, length:].any()
        assert longer.positions.isfinite().all()


@EACH
def test_a_chain_alone_gives_what_it_gives_in_a_batch(setting):
    protein, autoencoder = native(), model(setting)
    alone = protein.unstack()[1]
    latent = autoencoder.encode(alone)
    assert latent.cloud.positions.dim() == 2
    batch = autoencoder.encode(protein)
    assert_same_latent(latent.map(lambda t: t[None]), batch.map(lambda t: t[1:]))
    decoded, expected = autoencoder.decode(latent), autoencoder.decode(batch).unstack()[1]
    assert decoded.sequence == expected.sequence
    assert (decoded.positions - expected.positions).abs().max() < 1e-10


def test_masked_residues_in_the_middle_are_left_out():
    protein, autoencoder = native(), model()
    gap = protein.atom_mask.clone()
    gap[:, 10:34, CA] = False
    gapped = protein.replace(atom_mask=gap)
    garbage = gapped.replace(positions=torch.where(gapped.residue_mask[..., None, None], gapped.positions, 55.0))
    latent = autoencoder.encode(gapped)
    assert_same_latent(latent, autoencoder.encode(garbage))
    assert latent.cloud.mask.sum() < autoencoder.encode(protein).cloud.mask.sum()
    decoded = autoencoder.decode(latent)
    assert (decoded.residue_type[:, 10:34] == UNKNOWN).all()
    assert torch.equal(decoded.residue_mask, gapped.residue_mask)
    assert decoded.positions.isfinite().all()


# Shapes


@pytest.mark.parametrize("setting", ["stride 2", "stride 3", "no overlap", "no downsampling", "lmax 3"])
@pytest.mark.parametrize("length", [1, 4, 5, 17, 33, 128])
def test_any_length_survives_with_the_expected_number_of_numbers(setting, length):
    autoencoder, options = model(setting), SETTINGS[setting]
    protein = random_protein(length)
    latent = autoencoder.encode(protein)
    nodes = length
    for stride in options["strides"]:
        nodes = num_windows(nodes, options.get("kernel", 5), stride)
    assert latent.cloud.num_nodes == latent.cloud.mask.sum() == nodes
    lmax, channels = options.get("latent_lmax", 1), options.get("latent_channels", 32)
    assert latent.cloud.features.shape == (nodes, (lmax + 1) ** 2, channels)
    assert latent.numbers_per_residue == pytest.approx(nodes * (3 + (lmax + 1) ** 2 * channels) / length)
    decoded = autoencoder.decode(latent)
    assert decoded.positions.shape == (length, 14, 3)
    assert decoded.positions.isfinite().all()
    assert torch.equal(decoded.atom_mask, atom_exists()[decoded.residue_type])
    assert torch.equal(decoded.residue_number, protein.residue_number)


def test_the_default_model_stores_at_most_16_numbers_for_a_residue():
    """What configs/model/autoencoder.yaml says of chains of up to 128 residues (short ones need a whole node)."""
    torch.manual_seed(0)
    autoencoder = Autoencoder([8, 8, 8, 8], [2, 2, 2], latent_channels=35)
    for length in (30, 47, 64, 100, 128):
        latent = autoencoder.encode(random_protein(length, dtype=torch.float32))
        assert latent.numbers_per_residue <= 16


def test_names_travel_with_the_latent():
    protein, autoencoder = read(OPEN)[1].to(torch.float64), model()
    protein = protein.replace(chain_id="Q", residue_number=protein.residue_number + 100, name="adk")
    decoded = autoencoder.decode(autoencoder.encode(protein))
    assert (decoded.chain_id, decoded.name) == ("Q", "adk")
    assert decoded.residue_number[0] == 101


def test_as_many_widths_as_levels():
    with pytest.raises(ValueError, match="2 strides need 3 channel widths, not 2"):
        Autoencoder([16, 16], [2, 2])


# Randomness


def trained(**options) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder([16, 24], [2], **options).double().train()


@pytest.mark.parametrize("options", [dict(latent_noise=0.5), dict(latent_position_noise=0.5), dict(variational=True)])
def test_noise_is_added_in_training_alone(options):
    protein, autoencoder = native(), trained(**options)
    one, other = (autoencoder.encode(protein).cloud for _ in range(2))
    noisy = "positions" if "latent_position_noise" in options else "features"
    for name in ("positions", "features"):
        assert torch.equal(getattr(one, name), getattr(other, name)) == (name != noisy)
    assert not one.features[~one.mask].any()
    autoencoder.eval()
    one, other = (autoencoder.encode(protein).cloud for _ in range(2))
    assert torch.equal(one.features, other.features)
    assert torch.equal(one.positions, other.positions)


def test_noise_reaches_the_deviation_it_is_given_and_one_draw_sets_both():
    protein = native()
    autoencoder = trained(latent_noise=0.5, latent_position_noise=2.0)
    clean = copy.deepcopy(autoencoder).eval().encode(protein).cloud
    levels = []
    for seed in range(30):
        torch.manual_seed(seed)
        noisy = autoencoder.encode(protein).cloud
        for k in range(len(clean.mask)):
            real = clean.mask[k]
            features = (noisy.features - clean.features)[k, real].std().item()
            positions = (noisy.positions - clean.positions)[k, real].std().item()
            assert positions == pytest.approx(4 * features, rel=0.6)
            levels.append(features)
    assert max(levels) == pytest.approx(0.5, rel=0.15) and min(levels) < 0.1
    assert sum(levels) / len(levels) == pytest.approx(0.25, rel=0.3)


def test_without_noise_training_and_evaluation_agree():
    protein, autoencoder = native(), trained()
    one = autoencoder(protein)[0].positions
    assert torch.equal(one, autoencoder(protein)[0].positions)
    assert torch.equal(one, autoencoder.eval()(protein)[0].positions)


@pytest.mark.parametrize("variational", [True, False])
def test_divergence_is_that_of_the_latent(variational):
    protein = native()
    autoencoder = trained(variational=variational)
    _, kl = autoencoder(protein)
    _, of_padded = autoencoder(protein.pad(100))
    assert kl.shape == (2,)
    assert torch.allclose(kl, of_padded)
    assert (kl > 0).all() if variational else (kl == 0).all()


def test_plain_latents_have_unit_rms():
    cloud = model().encode(native()).cloud
    assert cloud.features[cloud.mask][:, 0].square().mean().item() == pytest.approx(1.0, abs=0.01)
    assert cloud.features[cloud.mask][:, 1:4].square().mean().item() == pytest.approx(1.0, abs=0.01)


# Gradients


@pytest.mark.parametrize("lmax", [2, 3])
@pytest.mark.parametrize("variational", [True, False])
def test_the_gradient_reaches_every_parameter(lmax, variational):
    """But for what feeds only degrees that nothing reads: atoms are made of degrees up to 2."""
    torch.manual_seed(0)
    autoencoder = Autoencoder(
        [8, 12, 16], [2, 2], lmax=lmax, latent_channels=8, latent_lmax=lmax, variational=variational, neighbours=3
    )
    protein = native().to(torch.float32)
    loss = ReconstructionLoss(dict.fromkeys(TERMS, 1.0))
    with torch.enable_grad():
        loss(*autoencoder(protein), protein)[0].backward()
    idle = {f"decoder_blocks.0.0.interaction.{linear}.weights.3" for linear in ("mix", "out")} if lmax == 3 else set()
    for name, parameter in autoencoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad.abs().max() == 0) == (name in idle), name


def test_gradients_are_finite_where_atoms_coincide():
    """The atoms of a residue, those of a pair, and whole neighbours."""
    protein = native().to(torch.float32)
    positions = protein.positions.clone()
    positions[:, 3] = protein.ca[:, 3, None]
    positions[:, 11] = positions[:, 10]
    for kind, slots in ((TYPE_OF[name], pairs[0]) for name, pairs in PAIRS.items()):
        here = protein.residue_type == kind
        positions[here, slots[1]] = positions[here, slots[0]]
    positions.requires_grad_()
    torch.manual_seed(0)
    autoencoder = Autoencoder(**SETTINGS["spatial"])
    with torch.enable_grad():
        decoded, _ = autoencoder(protein.replace(positions=positions))
        decoded.positions.square().mean().backward()
    assert positions.grad.isfinite().all()
    assert positions.grad.abs().max() > 0
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in autoencoder.parameters())


@EACH
def test_every_residue_reaches_the_latent(setting):
    protein, autoencoder = random_protein(40), model(setting)
    positions = protein.positions.requires_grad_()
    with torch.enable_grad():
        cloud = autoencoder.encode(protein.replace(positions=positions)).cloud
        cloud.features.square().sum(-1).sin().sum().backward()
    # interchangeable atoms included
    assert positions.grad[protein.atom_mask].abs().amax(-1).min() > 0
