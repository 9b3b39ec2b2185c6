from collections.abc import Callable

import pytest
import torch
from torch import nn

from ophio import layers
from ophio.cloud import Cloud
from ophio.irreps import split
from ophio.layers import (
    EquivariantNorm,
    Gate,
    SelfInteraction,
    SequenceConvolution,
    SpatialConvolution,
    TransposedSequenceConvolution,
)
from ophio.layers.sequence import num_windows, window_mask
from ophio.layers.spatial import nearest
from ophio.testing import assert_equivariant, assert_padding_invariant, random_cloud, random_motion

LMAX, CHANNELS = 2, 8


class OnFeatures(nn.Module):
    """Lets norm and gate, which work on features, take a Cloud."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, cloud: Cloud) -> Cloud:
        return cloud.replace(features=self.layer(cloud.features))


class Upsampling(nn.Module):
    """A transposed convolution to the fine nodes whose (last) window is real."""

    def __init__(self, layer: TransposedSequenceConvolution):
        super().__init__()
        self.layer = layer

    def forward(self, cloud: Cloud) -> Cloud:
        kernel, stride = self.layer.kernel, self.layer.stride
        first, later = (0, 1) if stride == 1 else (kernel, stride)
        num_nodes = first + (cloud.num_nodes - (stride > 1)) * later
        window = torch.arange(num_nodes) if stride == 1 else (torch.arange(num_nodes) - first + stride) // stride
        fine = cloud.mask[:, window.clamp(min=0)]
        assert torch.equal(window_mask(fine, kernel, stride), cloud.mask)
        return self.layer(cloud, fine)


# name of the layer -> settings that take different paths through its code
TABLE: dict[str, dict[str, Callable[[], nn.Module]]] = {
    "EquivariantNorm": {
        "affine": lambda: OnFeatures(EquivariantNorm(LMAX, CHANNELS)),
        "plain": lambda: OnFeatures(EquivariantNorm(LMAX, CHANNELS, affine=False)),
    },
    "Gate": {"default": lambda: OnFeatures(Gate(LMAX, CHANNELS))},
    "SelfInteraction": {
        "default": lambda: SelfInteraction(LMAX, CHANNELS),
        "hidden": lambda: SelfInteraction(LMAX, CHANNELS, hidden=5),
    },
    "SequenceConvolution": {
        "residual": lambda: SequenceConvolution(LMAX, CHANNELS, CHANNELS, kernel=3),
        "stride 2": lambda: SequenceConvolution(LMAX, CHANNELS, 6, kernel=5, stride=2),
        "stride 3": lambda: SequenceConvolution(LMAX, CHANNELS, 12, kernel=5, stride=3),
        "no overlap": lambda: SequenceConvolution(LMAX, CHANNELS, 12, kernel=4, stride=4),
    },
    "SpatialConvolution": {
        "few neighbours": lambda: SpatialConvolution(LMAX, CHANNELS, neighbours=4),
        "more neighbours than nodes": lambda: SpatialConvolution(LMAX, CHANNELS, neighbours=30),
    },
    "TransposedSequenceConvolution": {
        "stride 1": lambda: Upsampling(TransposedSequenceConvolution(LMAX, CHANNELS, 6, kernel=3, stride=1)),
        "stride 2": lambda: Upsampling(TransposedSequenceConvolution(LMAX, CHANNELS, 6, kernel=5, stride=2)),
        "stride 3": lambda: Upsampling(TransposedSequenceConvolution(LMAX, CHANNELS, 12, kernel=5, stride=3)),
        "no overlap": lambda: Upsampling(TransposedSequenceConvolution(LMAX, CHANNELS, 12, kernel=4, stride=4)),
    },
}
CASES = [pytest.param(make, id=f"{name}: {case}") for name, cases in TABLE.items() for case, make in cases.items()]


def randomised(make: Callable[[], nn.Module]) -> nn.Module:
    """The layer with noise on every parameter: what starts as 0 or 1 must not hide an error."""
    torch.manual_seed(0)
    layer = make().double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return layer


def test_every_layer_is_in_the_table():
    assert set(TABLE) == set(layers.__all__)


@pytest.mark.parametrize("make", CASES)
@pytest.mark.parametrize("lmax", [2, 3])
def test_layers_are_equivariant(monkeypatch, make, lmax):
    monkeypatch.setattr(f"{__name__}.LMAX", lmax)
    assert_equivariant(randomised(make), random_cloud(lmax=lmax, channels=CHANNELS))


@pytest.mark.parametrize("make", CASES)
@pytest.mark.parametrize("num_nodes", [1, 6, 24])
def test_padding_changes_nothing(make, num_nodes):
    layer = randomised(make)
    for extra in (0, 1, 13):
        assert_padding_invariant(layer, random_cloud(num_nodes, LMAX, CHANNELS), extra)


@pytest.mark.parametrize("make", CASES)
def test_layers_see_their_input(make):
    """Every degree of the output depends on the features that come in."""
    layer, cloud = randomised(make), random_cloud(lmax=LMAX, channels=CHANNELS)
    other = cloud.replace(features=cloud.features + 0.1 * random_cloud(channels=CHANNELS, seed=1).features)
    one, two = layer(cloud), layer(other)
    for before, after in zip(split(one.features[one.mask]), split(two.features[two.mask]), strict=True):
        assert (before - after).abs().max() > 1e-3


@pytest.mark.parametrize("make", CASES)
def test_gradients_are_finite_at_coincident_points(make):
    layer, cloud = randomised(make), random_cloud(lmax=LMAX, channels=CHANNELS)
    positions = torch.ones_like(cloud.positions).requires_grad_()
    features = (cloud.features * (torch.arange(24) % 2)[:, None, None]).requires_grad_()  # some nodes are all zero
    out = layer(Cloud(positions, features, cloud.mask))
    (out.features.sum() + out.positions.sum()).backward()
    for gradient in (positions.grad, features.grad, *(p.grad for p in layer.parameters())):
        assert gradient is None or gradient.isfinite().all()
    assert features.grad.abs().max() > 0


@pytest.mark.parametrize("make", CASES)
def test_features_keep_about_unit_variance_at_initialisation(monkeypatch, make):
    monkeypatch.setattr(f"{__name__}.CHANNELS", 32)
    torch.manual_seed(0)
    cloud = random_cloud(64, LMAX, 32)
    out = make().double()(cloud)
    for degree, part in enumerate(split(out.features[out.mask])):
        assert 0.25 < part.square().mean() < 2.0, degree


# Norm and gate


def test_norm_gives_unit_rms_for_each_degree_whatever_the_scale():
    torch.manual_seed(0)
    features = random_cloud(channels=64).features * torch.tensor([100.0, *[0.3] * 3, *[7.0] * 5])[:, None]
    for part in split(EquivariantNorm(2, 64).double()(features)):
        assert torch.allclose(part.square().mean((-1, -2)), torch.ones(3, 24, dtype=torch.float64), atol=0.01)


def test_norm_of_zeros_is_zero_with_finite_gradient():
    features = torch.zeros(1, 2, 9, 8, requires_grad=True)
    out = EquivariantNorm(2, 8)(features)
    out.sum().backward()
    assert not out.any()
    assert features.grad.isfinite().all()


# Chains of different lengths


def test_the_ladder_of_the_paper():
    ladder = [161]
    while ladder[-1] > 1:
        ladder.append(num_windows(ladder[-1], kernel=5, stride=3))
    assert ladder == [161, 53, 17, 5, 1]


@pytest.mark.parametrize(("kernel", "stride"), [(5, 3), (5, 2), (3, 2), (2, 2), (5, 5), (3, 1), (5, 1), (1, 1)])
def test_any_length_goes_down_and_up_again(kernel, stride):
    torch.manual_seed(0)
    down = SequenceConvolution(1, 4, 4, kernel, stride).double()
    up = TransposedSequenceConvolution(1, 4, 4, kernel, stride).double()
    for length in (*range(1, 20), 161):
        cloud = random_cloud(length, lmax=1, channels=4)
        few = down(cloud)
        assert few.num_nodes == num_windows(length, kernel, stride) >= 1
        assert few.mask[0].all()
        back = up(few, cloud.mask)
        assert back.positions.shape == cloud.positions.shape
        assert torch.equal(back.mask, cloud.mask)
        # every real node has a real parent: none is left at the default, the origin without features
        assert (back.features[cloud.mask].abs().amax((-1, -2)) > 1e-3).all()


@pytest.mark.parametrize(("kernel", "stride"), [(5, 3), (5, 2), (3, 1)])
def test_as_many_windows_are_real_as_the_chain_has_without_padding(kernel, stride):
    for length in range(1, 30):
        mask = torch.arange(40)[None] < length
        assert window_mask(mask, kernel, stride).sum() == num_windows(length, kernel, stride)


def test_a_window_of_gaps_alone_is_masked():
    mask = torch.ones(1, 17, dtype=torch.bool)
    mask[:, 5:11] = False
    assert window_mask(mask, 5, 3).tolist() == [[True, False, False, True, True]]


def test_positions_are_averages_of_real_nodes():
    cloud = random_cloud(5, channels=4).replace(mask=torch.tensor([[True, True, False, True, False]] * 3))
    few = SequenceConvolution(2, 4, 4, kernel=5, stride=3).double()(cloud)
    expected = cloud.positions[:, [0, 1, 3]].mean(1)
    assert torch.allclose(few.positions[:, 0], expected)


def test_strides_that_would_skip_nodes_are_refused():
    for layer in (SequenceConvolution, TransposedSequenceConvolution):
        with pytest.raises(ValueError, match="stride 4 with kernel 3 would skip nodes"):
            layer(2, 4, 4, kernel=3, stride=4)
        with pytest.raises(ValueError, match="stride 0 with kernel 3"):
            layer(2, 4, 4, kernel=3, stride=0)
        with pytest.raises(ValueError, match="kernel 4 without stride has no centre"):
            layer(2, 4, 4, kernel=4, stride=1)
    with pytest.raises(ValueError, match="4 channels cannot become 8"):
        SequenceConvolution(2, 4, 8, kernel=3, stride=1)


# Neighbours in space


def test_nearest_finds_the_nearest_real_nodes():
    cloud = random_cloud(12, channels=4)
    index, real = nearest(cloud, 4)
    distance = torch.cdist(cloud.positions, cloud.positions)
    for chain in range(3):
        for node in range(12):
            others = [k for k in cloud.mask[chain].nonzero()[:, 0].tolist() if k != node]
            expected = sorted(others, key=lambda k: distance[chain, node, k].item())[:4]
            found = index[chain, node][real[chain, node] > 0].tolist()
            assert found == expected


def test_neighbours_do_not_depend_on_where_the_chain_lies():
    """In float32, to within the rounding of the coordinates: neighbours may change places only where they tie."""
    cloud = random_cloud(200, channels=1, dtype=torch.float32)
    far = cloud.replace(positions=cloud.positions + torch.tensor([500.0, -300.0, 400.0]))
    distance = torch.cdist(cloud.positions, cloud.positions, compute_mode="donot_use_mm_for_euclid_dist")
    near, moved = (distance[0].gather(-1, nearest(x, 8)[0][0]) for x in (cloud, far))
    assert (near - moved).abs().max() < 1e-3


def test_a_lone_node_has_no_neighbours_and_stays_finite():
    torch.manual_seed(0)
    cloud = random_cloud(1, channels=4)
    _, real = nearest(cloud, 8)
    assert not real.any()
    assert SpatialConvolution(2, 4).double()(cloud).features.isfinite().all()


# Chirality


@pytest.mark.parametrize("kind", [SelfInteraction, SpatialConvolution])
def test_products_tell_left_from_right(kind):
    """Scalars differ from those of the mirror image."""
    torch.manual_seed(0)
    cloud = random_cloud(channels=8)
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    scalars, vectors, matrices = split(cloud.features)
    signs = torch.tensor([-1.0, -1.0, 1.0, 1.0, 1.0]).double()[:, None]  # xz, xy, yy, yz, zz - xx
    mirrored = Cloud(cloud.positions @ flip, torch.cat([scalars, flip @ vectors, matrices * signs], -2), cloud.mask)
    layer = nn.Sequential(kind(2, 8), kind(2, 8)).double()  # the first makes pseudovectors, the second sees them
    difference = layer(cloud).features[..., 0, :] - layer(mirrored).features[..., 0, :]
    assert difference.abs().max() > 1e-5  # rounding is 1e-15


# The assertions themselves must be able to fail


def constant_features(cloud: Cloud) -> Cloud:
    features = torch.zeros_like(cloud.features)
    features[..., 0, :] = 1.0
    return cloud.replace(features=features)


def with_constant_vector(cloud: Cloud) -> Cloud:
    features = cloud.features.clone()
    features[..., 1, :] += 1.0
    return cloud.replace(features=features)


def with_squared_components(cloud: Cloud) -> Cloud:
    return cloud.replace(features=cloud.features.square())


def with_absolute_positions(cloud: Cloud) -> Cloud:
    features = cloud.features.clone()
    features[..., 1:4, :] += cloud.positions[..., None]
    return cloud.replace(features=features)


def with_scaled_positions(cloud: Cloud) -> Cloud:
    return Cloud(2 * cloud.positions, 2 * cloud.features, cloud.mask)


def with_shifted_mask(cloud: Cloud) -> Cloud:
    return Cloud(cloud.positions, 2 * cloud.features, cloud.positions[..., 0] > cloud.positions[..., 0].median())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda cloud: cloud, "the output equals the input"),
        (lambda cloud: cloud.replace(features=0 * cloud.features), "degree 0 of the output is the same"),
        (constant_features, "degree 0 of the output is the same"),
        (lambda cloud: cloud.replace(features=cloud.features * 0 + cloud.features[..., :1, :]), "degree 1: off by"),
        (with_constant_vector, "degree 1: off by"),
        (with_squared_components, "degree 1: off by"),
        (with_absolute_positions, "degree 1: off by"),
        (with_scaled_positions, "positions: off by"),
        (with_shifted_mask, "the mask changes"),
        (lambda cloud: Cloud(cloud.positions, cloud.features, cloud.mask & False), "no node of the output is real"),
        (lambda cloud: Cloud(cloud.positions, 2 * cloud.features, cloud.mask).to(torch.float32), "not float64"),
        (lambda cloud: cloud.replace(features=cloud.features * torch.nan), "degree 0"),
    ],
)
def test_layers_that_are_not_equivariant_are_found(layer, reason):
    with pytest.raises(AssertionError, match=reason):
        assert_equivariant(layer, random_cloud(channels=4))


def nan_in_padding(cloud: Cloud) -> Cloud:
    features = (2 * cloud.features).masked_fill(~cloud.mask[..., None, None], torch.nan)
    return cloud.replace(features=features)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda cloud: cloud.replace(features=cloud.features - cloud.features.mean(1, keepdim=True)),
         "degree 0: off by"),
        (lambda cloud: Cloud(cloud.positions - cloud.positions.mean(1, keepdim=True), 2 * cloud.features, cloud.mask),
         "positions: off by"),
        (lambda cloud: Cloud(cloud.positions, 2 * cloud.features, torch.ones_like(cloud.mask)), "became real"),
        (nan_in_padding, "features of masked nodes are not finite"),
        (lambda cloud: cloud.replace(features=0 * cloud.features), "degree 0 of the output is the same"),
    ],
)  # fmt: skip
def test_layers_that_look_at_padding_are_found(layer, reason):
    with pytest.raises(AssertionError, match=reason):
        assert_padding_invariant(layer, random_cloud(channels=4))


def test_modules_of_users_are_left_as_they_were():
    layer = SelfInteraction(2, 8)
    assert_equivariant(layer, random_cloud())
    assert_padding_invariant(layer, random_cloud(dtype=torch.float32))
    assert all(parameter.dtype == torch.float32 for parameter in layer.parameters())


def test_random_clouds_have_full_prefix_and_gapped_masks():
    full, prefix, gapped = random_cloud(24).mask.tolist()
    assert all(full)
    assert prefix == [True] * 16 + [False] * 8
    assert sum(gapped) == 12
    assert gapped[:4] == [True, True, False, True]
    rotation, translation = random_motion(3)
    assert torch.allclose(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
    assert torch.linalg.det(rotation).item() == pytest.approx(1.0)
    assert translation.norm() > 1
