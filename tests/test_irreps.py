import pytest
import torch
from e3nn import o3

from ophio import irreps
from ophio.irreps import harmonics as harmonics_module
from ophio.irreps import linear as linear_module
from ophio.irreps import product as product_module
from ophio.geometry import random_rotation
from ophio.irreps import ChannelwiseProduct, ChannelwiseSquare, Linear
from ophio.testing import rotate_features

TRIPLES = [(a, b, c) for a in range(5) for b in range(5) for c in range(5) if abs(a - b) <= c <= a + b]


@pytest.fixture(autouse=True)
def double_precision():
    """e3nn takes its constants in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def rotation(generator) -> torch.Tensor:
    return random_rotation(generator=generator, dtype=torch.float64)


def features(generator: torch.Generator, lmax: int, channels: int, nodes: int = 50) -> torch.Tensor:
    return torch.randn(nodes, irreps.dim(lmax), channels, generator=generator)


def variance_of_degrees(parts) -> list[float]:
    """Mean square of each degree."""
    return [part.square().mean().item() for part in parts]


# Layout


def test_split_and_join_are_inverse(generator):
    x = torch.randn(2, 7, 16, 5, generator=generator)
    parts = irreps.split(x)
    assert [part.shape for part in parts] == [(2, 7, 2 * degree + 1, 5) for degree in range(4)]
    assert torch.equal(irreps.join(parts), x)
    assert irreps.lmax_of(x) == 3


def test_pad_degrees_cuts_what_it_added(generator):
    x = features(generator, 1, 3)
    wide = irreps.pad_degrees(x, 3)
    assert wide.shape == (50, 16, 3)
    assert torch.equal(wide[:, :4], x)
    assert not wide[:, 4:].any()
    assert torch.equal(irreps.pad_degrees(wide, 1), x)


def test_expand_degrees_repeats_one_value_for_each_degree():
    values = torch.tensor([[1.0], [2.0], [3.0]])
    assert irreps.expand_degrees(values)[:, 0].tolist() == [1, 2, 2, 2, 3, 3, 3, 3, 3]
    assert irreps.degree_of_component(2).tolist() == [0, 1, 1, 1, 2, 2, 2, 2, 2]


def test_features_of_no_whole_number_of_degrees_are_refused():
    with pytest.raises(ValueError, match=r"5 components.*\[2, 5, 3\]"):
        irreps.split(torch.zeros(2, 5, 3))


# Harmonics, Wigner matrices, Clebsch-Gordan coefficients: e3nn is the reference


@pytest.mark.parametrize("lmax", range(5))
def test_harmonics_are_those_of_e3nn(generator, lmax):
    vectors = torch.randn(4, 25, 3, generator=generator)
    expected = o3.spherical_harmonics(list(range(lmax + 1)), vectors, normalize=False, normalization="component")
    assert torch.allclose(irreps.solid_harmonics(vectors, lmax), expected, atol=1e-12)


def test_harmonics_have_the_norm_they_promise(generator):
    vectors = torch.randn(25, 3, generator=generator)
    for degree, part in enumerate(irreps.split(irreps.solid_harmonics(vectors, 4)[..., None])):
        expected = (2 * degree + 1) * vectors.norm(dim=-1) ** (2 * degree)
        assert torch.allclose(part.square().sum((-1, -2)), expected)


def test_harmonics_beyond_degree_four_are_refused():
    with pytest.raises(ValueError, match="lmax 0 to 4, not 5"):
        irreps.solid_harmonics(torch.zeros(3), 5)


def test_harmonics_have_finite_gradients_at_zero():
    vectors = torch.zeros(2, 3, requires_grad=True)
    irreps.solid_harmonics(vectors, 4).sum().backward()
    assert torch.allclose(vectors.grad, torch.full((2, 3), 3**0.5))


@pytest.mark.parametrize("lmax", [1, 4])
def test_gradients_of_harmonics_are_those_of_the_polynomials(generator, lmax):
    vectors = torch.randn(2, 3, 3, generator=generator).requires_grad_()
    expected = torch.stack(harmonics_module._polynomials(*vectors.unbind(-1), lmax), dim=-1)
    torch.testing.assert_close(irreps.solid_harmonics(vectors, lmax), expected)
    assert torch.autograd.gradcheck(lambda v: irreps.solid_harmonics(v, lmax), vectors)


def test_symmetric_traceless_is_the_outer_product(generator):
    d = torch.randn(10, 3, generator=generator)
    expected = d[:, :, None] * d[:, None] - d.square().sum(-1)[:, None, None] * torch.eye(3) / 3
    assert torch.allclose(irreps.symmetric_traceless(irreps.solid_harmonics(d, 2)[:, 4:]), expected)


@pytest.mark.parametrize("degree", range(5))
def test_wigner_matrices_are_those_of_e3nn(rotation, degree):
    matrix = irreps.wigner_matrix(degree, rotation)
    assert torch.allclose(matrix, o3.Irrep(degree, 1).D_from_matrix(rotation), atol=1e-10)
    assert torch.allclose(matrix @ matrix.T, torch.eye(2 * degree + 1), atol=1e-12)


def test_wigner_matrix_of_degree_one_is_the_rotation(rotation):
    assert torch.allclose(irreps.wigner_matrix(1, rotation), rotation, atol=1e-12)


@pytest.mark.parametrize("triple", TRIPLES)
def test_clebsch_gordan_is_the_wigner_3j_of_e3nn_up_to_sign(triple):
    tensor, expected = irreps.clebsch_gordan(*triple), o3.wigner_3j(*triple)
    assert tensor.norm().item() == pytest.approx(1.0)
    sign = (tensor * expected).sum().sign()
    assert torch.allclose(tensor, sign * expected, atol=1e-9)


def test_degrees_that_do_not_couple_are_refused():
    with pytest.raises(ValueError, match="1 and 1 do not couple to 3"):
        irreps.clebsch_gordan(1, 1, 3)


# Products


def product_of_e3nn(lmax: int, channels: int) -> tuple[o3.TensorProduct, list[tuple[int, int, int]]]:
    """The channel-wise product with one slot for each path, and the paths in the order of its slots."""
    paths = [(a, b, c) for c in range(lmax + 1) for a in range(lmax + 1) for b in range(lmax + 1)]
    paths = [(a, b, c) for a, b, c in paths if abs(a - b) <= c <= a + b]
    single = o3.Irreps([(channels, (degree, 1)) for degree in range(lmax + 1)])
    out = o3.Irreps([(channels, (c, 1)) for _, _, c in paths])
    instructions = [(a, b, slot, "uuu", False) for slot, (a, b, _) in enumerate(paths)]
    product = o3.TensorProduct(
        single, single, out, instructions, irrep_normalization="component", path_normalization="none"
    )
    return product, paths


def to_e3nn(x: torch.Tensor) -> torch.Tensor:
    """[..., S, C] -> channels outside, components inside, degree by degree."""
    return torch.cat([part.mT.flatten(-2) for part in irreps.split(x)], dim=-1)


@pytest.mark.parametrize(("lmax", "num_paths"), [(0, 1), (1, 5), (2, 15), (3, 34)])
def test_product_is_the_uuu_product_of_e3nn(generator, lmax, num_paths):
    channels = 3
    left, right = features(generator, lmax, channels), features(generator, lmax, channels)
    reference, paths = product_of_e3nn(lmax, channels)
    slots = reference(to_e3nn(left), to_e3nn(right)).split([channels * (2 * c + 1) for *_, c in paths], dim=-1)
    product = ChannelwiseProduct(lmax)
    assert sum(product.paths_per_degree) == len(paths) == num_paths
    found = [part.chunk(n, dim=-1) for part, n in zip(product(left, right), product.paths_per_degree, strict=True)]
    found = [of_path for of_degree in found for of_path in of_degree]
    for path, slot, part in zip(paths, slots, found, strict=True):
        expected = slot.unflatten(-1, (channels, -1)).mT
        sign = (irreps.clebsch_gordan(*path) * o3.wigner_3j(*path)).sum().sign()
        assert torch.allclose(part, sign * expected, atol=1e-8), path


@pytest.mark.parametrize(("lmax", "num_paths"), [(0, 1), (1, 3), (2, 9), (3, 18)])
def test_square_is_the_symmetric_part_of_the_product_with_itself(generator, lmax, num_paths):
    x = features(generator, lmax, 2)
    product, square = ChannelwiseProduct(lmax), ChannelwiseSquare(lmax)
    assert sum(square.paths_per_degree) == num_paths
    for degree, (all_paths, some) in enumerate(zip(product(x, x), square(x), strict=True)):
        pairs = [(a, b) for a in range(lmax + 1) for b in range(lmax + 1) if abs(a - b) <= degree <= a + b]
        kept = [k for k, (a, b) in enumerate(pairs) if a < b or (a == b and degree % 2 == 0)]
        for path, k in zip(some.chunk(len(kept), dim=-1), kept, strict=True):
            expected = all_paths.chunk(len(pairs), dim=-1)[k]
            scale = (path * expected).sum() / expected.square().sum()  # paths l x l are scaled to second moment 1
            assert torch.allclose(path, scale * expected, atol=1e-12)
            assert scale == pytest.approx(1) if pairs[k][0] < pairs[k][1] else 0.3 < scale < 1
        antisymmetric = [k for k, (a, b) in enumerate(pairs) if a == b and degree % 2]
        for k in antisymmetric:
            assert all_paths.chunk(len(pairs), dim=-1)[k].abs().max() < 1e-12


def test_square_has_unit_second_moment(generator):
    square = ChannelwiseSquare(3)
    x = torch.randn(50_000, 16, 1, generator=generator, dtype=torch.float64)
    for part in square(x):
        assert torch.allclose(part.square().mean((0, 1)), torch.ones(part.shape[-1], dtype=torch.float64), atol=0.05)


def test_product_of_vectors_contains_their_cross_product(generator):
    left, right = features(generator, 1, 4), features(generator, 1, 4)
    found = ChannelwiseProduct(1)(left, right)[1].chunk(3, dim=-1)[2]  # paths 0x1, 1x0, 1x1
    expected = torch.linalg.cross(left[:, 1:], right[:, 1:], dim=1) / 2**0.5
    assert min((found - expected).abs().max(), (found + expected).abs().max()) < 1e-12


# Symmetry


@pytest.mark.parametrize("lmax", [1, 2, 3])
def test_operations_are_equivariant(generator, rotation, lmax):
    left, right = features(generator, lmax, 5), features(generator, lmax, 5)
    product, square, linear = ChannelwiseProduct(lmax), ChannelwiseSquare(lmax), Linear([5] * (lmax + 1), 7)
    torch.nn.init.normal_(linear.bias)
    operations = {
        "product": lambda x, y: irreps.join(merge_paths(product(x, y), product)),
        "square": lambda x, y: irreps.join(merge_paths(square(x), square)),
        "linear": lambda x, y: linear(irreps.split(x)),
    }
    for name, operation in operations.items():
        expected = rotate_features(operation(left, right), rotation)
        found = operation(rotate_features(left, rotation), rotate_features(right, rotation))
        for part in irreps.split(expected):
            assert part.abs().max() > 0.1, name
        assert (expected - found).abs().max() < 1e-10, name


def merge_paths(parts, product) -> list[torch.Tensor]:
    """One path for each degree, made of all of them with different weights, so that degrees can be joined."""
    chunks = [part.chunk(n, dim=-1) for part, n in zip(parts, product.paths_per_degree, strict=True)]
    return [sum((k + 1) * path for k, path in enumerate(of_degree)) for of_degree in chunks]


@pytest.mark.parametrize("lmax", range(5))
def test_harmonics_are_equivariant(generator, rotation, lmax):
    vectors = torch.randn(20, 3, generator=generator)
    expected = rotate_features(irreps.solid_harmonics(vectors, lmax)[..., None], rotation)[..., 0]
    assert (irreps.solid_harmonics(vectors @ rotation.T, lmax) - expected).abs().max() < 1e-10


# Linear


def test_linear_maps_channels_within_each_degree(generator):
    linear = Linear([3, 5, 2], 4)
    torch.nn.init.normal_(linear.bias)
    parts = [torch.randn(6, 2 * degree + 1, width, generator=generator) for degree, width in enumerate([3, 5, 2])]
    out = irreps.split(linear(parts))
    for degree, (part, weight, mapped) in enumerate(zip(parts, linear.weights, out, strict=True)):
        expected = torch.einsum("nmi,io->nmo", part, weight) + (linear.bias if degree == 0 else 0)
        assert torch.allclose(mapped, expected)


def test_linear_can_leave_out_high_degrees_and_the_bias(generator):
    linear = Linear([3, 3, 3], 4, out_lmax=1, bias=False)
    assert linear.bias is None
    assert len(linear.weights) == 2
    assert linear(irreps.split(features(generator, 2, 3))).shape == (50, 4, 4)


def test_linear_cannot_make_a_degree_from_nothing():
    with pytest.raises(ValueError, match="cannot make degree 2 from degrees up to 1"):
        Linear([3, 3], 4, out_lmax=2)


# Scale at initialisation


def test_harmonics_of_unit_vectors_have_unit_variance(generator):
    vectors = torch.nn.functional.normalize(torch.randn(2000, 3, generator=generator), dim=-1)
    variances = variance_of_degrees(irreps.split(irreps.solid_harmonics(vectors, 4)[..., None]))
    assert variances == pytest.approx([1.0] * 5, abs=1e-9)


@pytest.mark.parametrize("lmax", [2, 3])
def test_products_of_independent_features_have_unit_variance(generator, lmax):
    left, right = features(generator, lmax, 16, 1000), features(generator, lmax, 16, 1000)
    product = ChannelwiseProduct(lmax)
    for part, n in zip(product(left, right), product.paths_per_degree, strict=True):
        assert variance_of_degrees(part.chunk(n, dim=-1)) == pytest.approx([1.0] * n, rel=0.1)


def test_linear_keeps_unit_variance_times_the_gain(generator):
    torch.manual_seed(0)
    x = irreps.split(features(generator, 3, 64, 200))
    for gain in (1.0, 0.5):
        out = irreps.split(Linear([64] * 4, 256, gain=gain)(x))
        assert variance_of_degrees(out) == pytest.approx([gain**2] * 4, rel=0.1)


@pytest.mark.parametrize("kind", [ChannelwiseProduct, ChannelwiseSquare])
def test_blocks_of_nodes_give_the_product_and_its_gradients(kind, monkeypatch):
    """In place and a few nodes at a time, as without `torch.compile`; against the definition and differences."""
    monkeypatch.setattr(product_module, "BLOCK", 6)
    torch.manual_seed(0)
    product = kind(2)
    inputs = [
        torch.randn(5, 9, 2, dtype=torch.float64, requires_grad=True) for _ in range(1 + (kind is ChannelwiseProduct))
    ]
    expected = product_module._plain(inputs[0], inputs[-1], product.table)
    for found, value in zip(product(*inputs), expected, strict=True):
        torch.testing.assert_close(found, value)
    assert torch.autograd.gradcheck(lambda *x: tuple(product(*x)), inputs)


def inputs_of_linear() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Joined features [4, 4, 2] of which memory has the components first, and degrees of 5 and 3 channels."""
    torch.manual_seed(0)
    joined = torch.randn(4, 4, 2).movedim(0, -2).requires_grad_()
    return joined, [torch.randn(4, 1, 5, requires_grad=True), torch.randn(4, 3, 3, requires_grad=True)]


def test_channels_of_several_inputs_of_a_map_count_one_after_the_other():
    joined, parts = inputs_of_linear()
    linear = Linear([7, 5], 3)
    both = [torch.cat(pair, dim=-1) for pair in zip(irreps.split(joined), parts, strict=True)]
    torch.testing.assert_close(linear(joined, parts), linear(both))
    with pytest.raises(ValueError, match="degree 0 comes with 2 channels, not 7"):
        linear(joined)


def test_linear_in_place_gives_the_map_and_its_gradients(monkeypatch):
    """A few rows at a time, as without `torch.compile`; against the definition and differences."""
    monkeypatch.setattr(linear_module, "_blocks", lambda rows, block: rows.split([3, len(rows) - 3]))
    joined, parts = inputs_of_linear()
    linear = Linear([7, 5], 3)
    torch.nn.init.normal_(linear.bias)
    expected = linear_module._plain([joined, parts], [*linear.weights], linear.bias)
    torch.testing.assert_close(linear(joined, parts), expected)
    with torch.no_grad():
        torch.testing.assert_close(linear(joined, parts), expected.detach())
    assert torch.autograd.gradcheck(lambda x, *parts: linear(x, parts), (joined, *parts))
    weights = [*linear.weights, linear.bias]
    found, wanted = (torch.autograd.grad(out.square().sum(), weights) for out in (linear(joined, parts), expected))
    torch.testing.assert_close(found, wanted)


def test_linear_follows_autocast():
    linear, x = Linear([3, 3], 4).float(), torch.randn(5, 4, 3, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = linear(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    torch.testing.assert_close(out.float(), linear(x), rtol=0.05, atol=0.05)
    assert linear.weights[1].grad.dtype == torch.float32


def test_scaling_degrees_has_the_gradients_of_its_definition():
    torch.manual_seed(0)
    features, scale = torch.randn(5, 9, 1, requires_grad=True), torch.randn(5, 3, 2, requires_grad=True)
    scaled = irreps.scale_degrees(irreps.split(features), scale)
    torch.testing.assert_close(scaled, features * irreps.expand_degrees(scale))
    assert torch.autograd.gradcheck(lambda x, y: irreps.scale_degrees(irreps.split(x), y), (features, scale))


def test_memory_of_features_has_the_components_first():
    """What operations return is laid out as the next one wants it; what comes from elsewhere is brought into order."""
    x = torch.randn(2, 5, 9, 3)
    first = irreps.components_first(x)
    assert first.is_contiguous() and first.shape == (9, 10, 3)
    assert torch.equal(irreps.components_last(first, (2, 5)), x)
    for made in (irreps.join(irreps.split(x)), Linear([3] * 3, 4)(x), irreps.components_last(first, (2, 5))):
        assert irreps.components_first(made).data_ptr() == made.data_ptr()
