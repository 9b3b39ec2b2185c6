"""The baseline: EGNN layers, and the autoencoder made of them."""

import runpy
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from adk import COBROTOXIN, OPEN, moved, read
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from inprocess import run_pipeline

from ophio import pretrained
from ophio.autoencoder import Autoencoder, Latent
from ophio.cloud import Cloud
from ophio.config import CONFIG_DIR
from ophio.constants import TYPE_OF
from ophio.geometry import transform
from ophio.layers.egnn import EGNNBlock, EGNNConvolution, fold_pairs, unfold_pairs, window_nodes
from ophio.layers.sequence import window_mask
from ophio.lightning.autoencoder import AutoencoderModule
from ophio.plots import compression_curve
from ophio.protein import Protein, stack
from ophio.residue import swap_pairs
from ophio.testing import assert_equivariant, assert_padding_invariant, random_cloud, random_motion

CURVE = runpy.run_path(str(Path(__file__).parents[1] / "pipelines" / "compression_curve.py"))
LAYERS = {
    "block": lambda: EGNNBlock(8, kernel=3, length_scale=4.0),
    "stride 2": lambda: EGNNConvolution(8, 6, kernel=5, stride=2, length_scale=4.0),
    "stride 3": lambda: EGNNConvolution(8, 12, kernel=5, stride=3, length_scale=4.0),
    "fold": lambda: lambda cloud: fold_pairs(unfold_pairs(cloud)),
    "unfold": lambda: unfold_pairs,
}
EACH = pytest.mark.parametrize("layer", LAYERS)
NARROW = dict(channels=[12, 16, 20], strides=[2, 2], latent_channels=8, architecture="egnn")


def made(layer: str):
    torch.manual_seed(0)
    return LAYERS[layer]()


@cache
def model() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(**NARROW).double().eval()


def native() -> Protein:
    """Two chains, padded, the second one short of a few residues."""
    chains = [read(OPEN)[1].crop(0, 40), read(COBROTOXIN)[1].crop(0, 33)]
    return stack([chain.center() for chain in chains]).to(torch.float64)


# Layers


@EACH
def test_layers_are_equivariant(layer):
    assert_equivariant(made(layer), random_cloud(lmax=1))


@EACH
def test_padding_changes_nothing(layer):
    for num_nodes in (1, 6, 24):
        assert_padding_invariant(made(layer), random_cloud(num_nodes, lmax=1), extra=5)


@pytest.mark.parametrize("layer", ["block", "stride 2", "stride 3"])
def test_layers_cannot_tell_left_from_right(layer):
    """Every result for the mirror image is the mirror image of the result."""
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))

    def mirror(cloud: Cloud) -> Cloud:
        features = torch.cat([cloud.features[..., :1, :], flip @ cloud.features[..., 1:4, :]], dim=-2)
        return Cloud(cloud.positions @ flip, features, cloud.mask)

    cloud, module = random_cloud(lmax=1), made(layer).double()
    expected, found = mirror(module(cloud)), module(mirror(cloud))
    assert (expected.features - found.features)[found.mask].abs().max() < 1e-10
    assert (expected.positions - found.positions)[found.mask].abs().max() < 1e-10


@pytest.mark.parametrize("layer", ["block", "stride 2"])
def test_distances_alone_reach_the_scalars(layer):
    """Scalars change with the geometry even where all scalars that come in are equal."""
    cloud, module = random_cloud(lmax=1), made(layer).double()
    equal = torch.cat([torch.ones_like(cloud.features[..., :1, :]), cloud.features[..., 1:, :]], dim=-2)
    wide, narrow = (module(cloud.replace(features=equal, positions=scale * cloud.positions)) for scale in (1.0, 0.5))
    difference = (wide.features - narrow.features)[wide.mask]
    assert difference[:, 0].abs().max() > 1e-3 and difference[:, 1:].abs().max() > 1e-3


@pytest.mark.parametrize("layer", ["block", "stride 2"])
def test_gradients_are_finite_at_coincident_points(layer):
    cloud, module = random_cloud(lmax=1), made(layer).double()
    positions = torch.ones_like(cloud.positions).requires_grad_()
    features = torch.zeros_like(cloud.features).requires_grad_()
    out = module(Cloud(positions, features, cloud.mask))
    (out.features.sum() + out.positions.sum()).backward()
    assert positions.grad.isfinite().all() and features.grad.isfinite().all() and features.grad.abs().max() > 0


def test_features_keep_about_unit_variance_at_initialisation():
    torch.manual_seed(0)
    cloud = random_cloud(64, lmax=1, channels=32)
    for layer in (EGNNBlock(32, 3, 4.0), EGNNConvolution(32, 32, 5, 2, 4.0)):
        out = layer.double()(cloud)
        for part in (out.features[..., :1, :], out.features[..., 1:, :]):
            assert 0.25 < part[out.mask].square().mean() < 2.5


@pytest.mark.parametrize(("kernel", "stride"), [(5, 2), (5, 3), (4, 4), (3, 1)])
def test_windows_are_those_of_the_sequence_convolution(kernel, stride):
    for length in (1, 4, 9, 20):
        mask = torch.ones(1, length, dtype=torch.bool)
        index, inside = window_nodes(length, kernel, stride)
        assert len(index) == window_mask(mask, kernel, stride).shape[1]
        assert sorted(set(index[inside].tolist())) == list(range(length))
    index, inside = window_nodes(7, 5, 2)
    assert index.tolist() == [[0, 1, 2, 3, 4], [2, 3, 4, 5, 6]] and inside.all()


# The autoencoder


def test_moving_a_protein_moves_latent_and_reconstruction():
    protein, motion = native(), random_motion()
    one, other = (model().encode(x) for x in (protein, moved(protein, *motion)))
    assert_moved(one, other, motion)
    still, turned = (model().decode(x) for x in (one, other))
    assert torch.equal(still.residue_type, turned.residue_type) and len(still.residue_type.unique()) > 2
    expected = moved(still, *motion)
    assert (expected.positions - turned.positions).norm(dim=-1)[still.atom_mask].max() < 1e-9


def assert_moved(one: Latent, other: Latent, motion: tuple) -> None:
    real = one.cloud.mask
    assert (transform(one.cloud.positions, *motion) - other.cloud.positions)[real].abs().max() < 1e-10
    assert (one.cloud.features[..., :1, :] - other.cloud.features[..., :1, :])[real].abs().max() < 1e-10
    vectors, turned = (x.cloud.features[..., 1:, :] for x in (one, other))
    assert (motion[0] @ vectors - turned)[real].abs().max() < 1e-10 and vectors[real].abs().max() > 0.1


def test_interchangeable_atoms_are_seen_but_not_their_order():
    protein = native()
    everywhere = torch.ones_like(protein.residue_type, dtype=torch.bool)
    swapped = protein.replace(positions=swap_pairs(protein.positions, protein.residue_type, everywhere))
    assert not torch.equal(swapped.positions, protein.positions)
    one, other = (model().encode(x).cloud for x in (protein, swapped))
    assert torch.equal(one.features, other.features)
    ring = protein.residue_type == TYPE_OF["PHE"]
    flat = protein.positions.clone()
    flat[..., 6:10, :] = torch.where(ring[..., None, None], flat[..., 5:6, :], flat[..., 6:10, :])
    assert (one.features - model().encode(protein.replace(positions=flat)).cloud.features).abs().max() > 1e-3


def test_the_gradient_reaches_every_parameter():
    protein = native().to(torch.float32)
    torch.manual_seed(0)
    autoencoder = Autoencoder(**NARROW)
    decoded, _ = autoencoder(protein)
    (decoded.positions.square().mean() + decoded.logits.square().mean()).backward()
    for name, parameter in autoencoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("options", [dict(neighbours=4), dict(contacts=4), dict(latent_lmax=2)])
def test_what_it_has_not_is_refused(options):
    with pytest.raises(ValueError, match="architecture egnn: has no"):
        Autoencoder(**NARROW | options)
    with pytest.raises(ValueError, match="architecture gnn: there are ophio and egnn"):
        Autoencoder(**NARROW | {"architecture": "gnn"})


def test_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    autoencoder = Autoencoder(**NARROW).eval()
    pretrained.save(autoencoder, NARROW, tmp_path, {"name": "baseline"})
    protein = read(OPEN)[1].crop(0, 20)
    with torch.no_grad():
        expected, found = (x.decode(x.encode(protein)) for x in (autoencoder, pretrained.load(tmp_path)))
    assert torch.equal(expected.positions, found.positions)


# The curve


def composed(name: str, *options: str):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(name, list(options))


@pytest.mark.parametrize("point", composed("compression_curve", "corpus=corpus").baseline_points)
def test_it_has_the_parameters_of_the_model_it_is_compared_with(point):
    config, sizes = composed("compression_curve", "corpus=corpus"), {}
    for architecture, channels in (("ophio", config.channels), ("egnn", config.baseline_channels)):
        options = CURVE["point_options"](*CURVE["parse_point"](point), list(channels), architecture)
        model = instantiate(composed("train_autoencoder", "experiment=curve", "data.path=corpus", *options).model)
        sizes[architecture] = sum(parameter.numel() for parameter in model.parameters())
    assert sizes["egnn"] == pytest.approx(sizes["ophio"], rel=0.05)


def test_a_training_step_fits_the_batch_better():
    """Loss, optimiser and learning rate are those of the curve, without the warm-up."""
    config = composed("train_autoencoder", "experiment=curve", "data.path=corpus")
    torch.manual_seed(0)
    parts = Autoencoder(**NARROW), instantiate(config.loss), instantiate(config.optimizer)
    module, batch = AutoencoderModule(*parts, warmup_steps=1), native().to(torch.float32)
    optimizer = module.configure_optimizers()["optimizer"]
    module.log = module.log_dict = lambda *_, **__: None

    def loss() -> torch.Tensor:
        torch.manual_seed(0)  # the same atoms are drawn
        return module.training_step(batch, 0)

    before = loss()
    before.backward()
    optimizer.step()
    assert loss() < before


def test_both_architectures_are_trained_and_compared(monkeypatch):
    started = []
    monkeypatch.setitem(CURVE["main"].__wrapped__.__globals__, "run_script", lambda *call: started.append(call))
    options = ["corpus=corpus", "output=out", "factors=[2]", "more=[]", "baseline_points=['2:8']", "options=['seed=1']"]
    assert run_pipeline(CURVE["main"], "compression_curve", *options) == 0
    (_, ours), (_, baseline), (script, evaluation) = started
    assert {"output=out/x2_8", "model.architecture=ophio", "seed=1"} < set(ours)
    assert {"output=out/egnn_x2_8", "model.architecture=egnn", "seed=1"} < set(baseline)
    assert script == "reconstruct.py" and "models=[out/x2_8,out/egnn_x2_8]" in evaluation
    assert [x for x in ours if "latent" in x] == [x for x in baseline if "latent" in x]


@pytest.mark.skipif(not find_spec("matplotlib"), reason="plots need matplotlib")
def test_the_plot_tells_them_apart():
    columns = ("stride", "numbers_per_residue", "ca_rmsd_median", "all_atom_rmsd_median", "residue_accuracy")
    row = dict.fromkeys(columns, "1")
    ours = row | {"architecture": "ophio"}
    assert compression_curve([ours, ours]) != compression_curve([ours, row | {"architecture": "egnn"}])
