"""For testing equivariant layers, one's own included.

Random Clouds and proteins, rigid motions, and assertions:

    cloud = random_cloud(lmax=2, channels=8)
    assert_equivariant(MyLayer(lmax=2, channels=8), cloud)
    assert_padding_invariant(MyLayer(lmax=2, channels=8), cloud)
"""

import copy
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ophio.cloud import Cloud
from ophio.constants import BONDS, CA, NUM_SLOTS, NUM_TYPES, N
from ophio.geometry import random_rotation, transform
from ophio.irreps import dim, join, split, wigner_matrix
from ophio.protein import Protein
from ophio.residue import atom_exists

Layer = Callable[[Cloud], Cloud]
_STEP = 3.8  # Å between consecutive CA
_BOND = 1.5  # Å


def random_cloud(
    num_nodes: int = 24, lmax: int = 2, channels: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Cloud:
    """A batch of three chains: all nodes real, a prefix of them real, a prefix with gaps.

    Positions are random walks in steps of about 3.8 Å (no two alike: neighbours have an order), features are normal;
    those of masked nodes, too.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(3, num_nodes, 3, generator=generator, dtype=dtype)
    features = torch.randn(3, num_nodes, dim(lmax), channels, generator=generator, dtype=dtype)
    node = torch.arange(num_nodes)
    prefix = node < max(1, num_nodes * 2 // 3)
    mask = torch.stack([torch.ones_like(prefix), prefix, prefix & (node % 4 != 2)])
    return Cloud(_STEP * 3**-0.5 * steps.cumsum(1), features, mask)


def random_protein(
    num_residues: int = 40, seed: int = 0, missing: float = 0.0, dtype: torch.dtype = torch.float64
) -> Protein:
    """A chain of all 20 residue types in random order; bonded atoms are 1.5 Å apart in random directions.

    The bonds are those of the residues, angles and rings are not. `missing`: share of the atoms other than CA to leave
    out.
    """
    generator = torch.Generator().manual_seed(seed)
    residue_type = torch.randperm(num_residues, generator=generator) % NUM_TYPES
    steps = F.normalize(torch.randn(num_residues, NUM_SLOTS, 3, generator=generator, dtype=dtype), dim=-1)
    positions = torch.zeros_like(steps)
    positions[:, CA] = _STEP * steps[:, CA].cumsum(0)
    parents, residue = _parents()[residue_type], torch.arange(num_residues)
    for slot in (slot for slot in range(NUM_SLOTS) if slot != CA):
        positions[:, slot] = positions[residue, parents[:, slot]] + _BOND * steps[:, slot]
    kept = torch.rand(num_residues, NUM_SLOTS, generator=generator) >= missing
    kept[:, CA] = True
    atom_mask = atom_exists()[residue_type] & kept
    return Protein.from_atoms(positions * atom_mask[..., None], atom_mask, residue_type)


@cache
def _parents() -> Int[Tensor, "20 14"]:
    """For each type and slot, the slot it is bonded to on the way to the CA."""
    parents = torch.full((NUM_TYPES, NUM_SLOTS), CA)
    for kind, bonds in enumerate(BONDS.values()):
        for a, b in bonds:
            if (a, b) != (N, CA):
                parents[kind, max(a, b)] = min(a, b)
    return parents


def random_motion(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Float[Tensor, "3 3"], Float[Tensor, "3"]]:
    """A rotation and a translation of about 20 Å."""
    generator = torch.Generator().manual_seed(seed)
    rotation = random_rotation(generator=generator, dtype=dtype)
    return rotation, 12.0 * torch.randn(3, generator=generator, dtype=dtype)


def rotate_features(
    features: Float[Tensor, "*batch S C"], rotation: Float[Tensor, "3 3"]
) -> Float[Tensor, "*batch S C"]:
    """Every degree multiplied by its Wigner matrix."""
    return join([wigner_matrix(degree, rotation) @ part for degree, part in enumerate(split(features))])


def move(cloud: Cloud, rotation: Float[Tensor, "3 3"], translation: Float[Tensor, "3"]) -> Cloud:
    """The cloud as a rigid body: positions turn and shift, features turn."""
    positions = transform(cloud.positions, rotation, translation)
    return Cloud(positions, rotate_features(cloud.features, rotation), cloud.mask)


def assert_equivariant(layer: Layer, cloud: Cloud, tolerance: float = 1e-10, seed: int = 0) -> None:
    """Moving the input of `layer` moves its output, for a random rotation and translation, in float64.

    An output that is the same at every node (zeros, say) or equal to the input passes no test: symmetry would be
    trivial. Modules are copied and converted to float64; whatever else a plain function holds must be float64 already.

    Args:
        layer: module or function from a Cloud to a Cloud; random parts must be off (`eval`).
        cloud: the input, in any floating dtype.
        tolerance: largest error allowed, relative to the largest entry of the output's positions, or of a degree.
        seed: of the motion.

    Raises:
        AssertionError: with what is off, and by how much.
    """
    layer, cloud = _in_double(layer), cloud.to(torch.float64)
    motion = [part.to(cloud.positions) for part in random_motion(seed)]
    with torch.no_grad():
        out, out_of_moved = layer(cloud), layer(move(cloud, *motion))
        _assert_not_trivial(cloud, out)
        _assert_same(move(out, *motion), out_of_moved, tolerance, "after a rotation and translation of the input")


def assert_padding_invariant(
    layer: Layer, cloud: Cloud, extra: int = 5, tolerance: float = 1e-10, seed: int = 0
) -> None:
    """What real nodes give depends neither on the values in masked nodes nor on how many follow the last real one.

    Masked nodes are filled with large random numbers and `extra` more are appended. The outputs at real nodes must
    agree and all outputs must be finite. Arguments and errors are those of `assert_equivariant`.
    """
    layer, cloud = _in_double(layer), cloud.to(torch.float64)
    with torch.no_grad():
        out, out_of_padded = layer(cloud), layer(_fill_padding(cloud, extra, seed))
        _assert_not_trivial(cloud, out)
        longer = out_of_padded.mask[:, out.num_nodes :]
        assert not longer.any(), f"{int(longer.sum())} nodes became real by padding"
        shown = slice(out.num_nodes)
        kept = Cloud(out_of_padded.positions[:, shown], out_of_padded.features[:, shown], out_of_padded.mask[:, shown])
        _assert_same(out, kept, tolerance, "when masked nodes change")
        for what, values in (("positions", out_of_padded.positions), ("features", out_of_padded.features)):
            assert values.isfinite().all(), f"{what} of masked nodes are not finite"


def _in_double(layer: Layer) -> Layer:
    return copy.deepcopy(layer).double() if isinstance(layer, nn.Module) else layer


def _fill_padding(cloud: Cloud, extra: int, seed: int) -> Cloud:
    generator = torch.Generator().manual_seed(seed)

    def filled(x: Tensor) -> Tensor:
        x = torch.cat([x, x.new_zeros(x.shape[0], extra, *x.shape[2:])], dim=1)
        noise = 100 * torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        return torch.where(mask.view(*mask.shape, *[1] * (x.dim() - 2)), x, noise)

    mask = F.pad(cloud.mask, (0, extra))
    return Cloud(filled(cloud.positions), filled(cloud.features), mask)


def _assert_not_trivial(cloud: Cloud, out: Cloud) -> None:
    real = out.mask
    assert real.any(), "no node of the output is real"
    assert out.positions.dtype == out.features.dtype == torch.float64, "the output is not float64"
    for degree, part in enumerate(split(out.features[real])):
        spread = (part - part.mean(0)).abs().max()
        assert spread > 1e-6, f"degree {degree} of the output is the same at all {len(part)} real nodes"
    if out.features.shape == cloud.features.shape:
        same = torch.equal(out.features, cloud.features) and torch.equal(out.positions, cloud.positions)
        assert not same, "the output equals the input"


def _assert_same(expected: Cloud, found: Cloud, tolerance: float, when: str) -> None:
    assert torch.equal(expected.mask, found.mask), f"the mask changes {when}"
    _assert_close("positions", expected.positions, found.positions, found.mask, tolerance, when)
    parts = zip(split(expected.features), split(found.features), strict=True)
    for degree, (one, other) in enumerate(parts):
        _assert_close(f"degree {degree}", one, other, found.mask, tolerance, when)


def _assert_close(
    what: str,
    expected: Float[Tensor, "batch n *shape"],
    found: Float[Tensor, "batch n *shape"],
    mask: Bool[Tensor, "batch n"],
    tolerance: float,
    when: str,
) -> None:
    expected, found = expected[mask], found[mask]
    error, scale = (expected - found).abs().max(), expected.abs().max()
    assert error <= tolerance * scale, f"{what}: off by {error:.2g} of {scale:.2g} {when}"
