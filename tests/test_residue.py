import math

import pytest
import torch
from adk import CLOSED, COBROTOXIN, OPEN, read

from ophio.constants import ATOM14, CA, NUM_SLOTS, PAIRS, RESIDUE_LETTERS, RESIDUE_NAMES, TYPE_OF, UNKNOWN
from ophio.geometry import dihedral, transform
from ophio.irreps import solid_harmonics, split
from ophio.protein import Protein, stack
from ophio.residue import (
    ResidueDecoding,
    ResidueEncoding,
    atom_exists,
    half_difference,
    name_pairs,
    pair_tables,
    put,
    swap_pairs,
    take,
)
from ophio.testing import assert_equivariant, move, random_cloud, random_motion, random_protein

# bond to turn about, with what lies before it, and the pair
NAMING = {"ASP": "CA CB CG OD1 OD2", "PHE": "CA CB CG CD1 CD2", "TYR": "CA CB CG CD1 CD2", "GLU": "CB CG CD OE1 OE2"}


def native() -> Protein:
    """Adenylate kinase and cobrotoxin: together all 20 types."""
    return stack([read(OPEN)[1], read(COBROTOXIN)[1]]).to(torch.float64)


def swapped(protein: Protein, where: torch.Tensor | None = None) -> Protein:
    """The same residues with interchangeable atoms named the other way round, where told."""
    where = torch.ones_like(protein.residue_type, dtype=torch.bool) if where is None else where
    mask = swap_pairs(protein.atom_mask[..., None].double(), protein.residue_type, where)[..., 0] > 0
    return protein.replace(positions=swap_pairs(protein.positions, protein.residue_type, where), atom_mask=mask)


def encoding(lmax: int = 2, channels: int = 16) -> ResidueEncoding:
    torch.manual_seed(0)
    return ResidueEncoding(lmax, channels).double()


def assert_same_cloud(one, other) -> None:
    assert torch.equal(one.features, other.features)
    assert torch.equal(one.positions, other.positions)
    assert torch.equal(one.mask, other.mask)


# Tables


def test_tables_hold_what_the_constants_say():
    exists, (slots, pairs) = atom_exists(), pair_tables()
    for kind, name in enumerate(RESIDUE_NAMES):
        assert exists[kind].sum() == len(ATOM14[name])
        assert [tuple(pair) for pair in slots[kind][pairs[kind]].tolist()] == PAIRS.get(name, [])
    assert not exists[UNKNOWN].any()
    assert not pairs[UNKNOWN].any()


def test_put_replaces_what_take_finds():
    atoms = torch.randn(5, NUM_SLOTS, 3)
    slots = torch.tensor([[6, 8]]).expand(5, 2)
    where = torch.tensor([[True, False]]).expand(5, 2)
    new = put(atoms, slots, torch.zeros(5, 2, 3), where)
    assert not new[:, 6].any()
    assert torch.equal(take(new, slots)[:, 1], atoms[:, 8])
    others = [slot for slot in range(NUM_SLOTS) if slot != 6]
    assert torch.equal(new[:, others], atoms[:, others])


def test_swapping_twice_changes_nothing_and_once_only_the_pairs():
    protein = random_protein()
    once = swapped(protein)
    assert torch.equal(swapped(once).positions, protein.positions)
    for kind, atoms, before in zip(protein.residue_type.tolist(), once.positions, protein.positions, strict=True):
        moved = {slot for pair in PAIRS.get(RESIDUE_NAMES[kind], []) for slot in pair}
        for slot in range(len(ATOM14[RESIDUE_NAMES[kind]])):
            assert torch.equal(atoms[slot], before[slot]) == (slot not in moved)


# The half difference of a pair


def outer(x: torch.Tensor) -> torch.Tensor:
    """Blind to the sign of x, as everything must be that follows."""
    return x[..., :, None] * x[..., None, :]


@pytest.fixture
def differences() -> torch.Tensor:
    """Half differences as they are in proteins: about 1.1 to 1.2 Å, in units of 2 Å."""
    d = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return 0.6 * d / d.norm(dim=-1, keepdim=True)


def test_half_difference_recovers_the_vector_up_to_sign(differences):
    for scale in (0.1, 1.0, 5.0):
        d = scale * differences
        h = half_difference(solid_harmonics(d, 2)[..., 4:])
        assert torch.minimum((h - d).norm(dim=-1), (h + d).norm(dim=-1)).max() < 1e-9 * scale


def test_half_difference_has_the_gradient_of_finite_differences(differences):
    degree_two = solid_harmonics(differences, 2)[..., 4:].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: outer(half_difference(x)), (degree_two,))


def test_half_difference_of_a_vector_passes_the_gradient_of_the_vector(differences):
    weight = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    d = differences.clone().requires_grad_()
    (outer(half_difference(solid_harmonics(d, 2)[..., 4:])) * weight).sum().backward()
    expected = differences @ (weight + weight.T)
    assert torch.allclose(d.grad, expected, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_half_difference_has_finite_gradients_where_eigenvalues_meet(dtype):
    d = torch.eye(3, dtype=dtype)
    # nothing at all, two equal atoms, and a disc, which has no dominant axis; then almost these
    degenerate = torch.stack([torch.zeros(5, dtype=dtype), *-solid_harmonics(d, 2)[:, 4:]])
    almost = degenerate + 1e-7 * torch.ones(5, dtype=dtype)
    degree_two = torch.cat([degenerate, almost]).requires_grad_()
    half = half_difference(degree_two)
    (half * torch.arange(1, 4)).sum().backward()
    assert half.isfinite().all()
    assert degree_two.grad.isfinite().all()
    assert degree_two.grad.abs().max() < 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_half_difference_is_zero_where_no_axis_stands_out(dtype, differences):
    """A disc: every direction in it would do, and none turns with the frame."""
    disc = -solid_harmonics(differences.to(dtype), 2)[..., 4:]
    assert half_difference(disc).norm(dim=-1).max() < 1e-4
    assert not half_difference(0 * disc).any()


# Encoding


def test_the_encoding_is_equivariant():
    protein, layer = native(), encoding()
    rotation, translation = random_motion()
    positions = transform(protein.positions.flatten(1, 2), rotation, translation).view_as(protein.positions)
    expected, found = move(layer(protein), rotation, translation), layer(protein.with_positions(positions))
    assert (expected.features - found.features).abs().max() < 1e-10
    mask = found.mask
    assert (expected.positions[mask] - found.positions[mask]).abs().max() < 1e-10
    for part in split(found.features[mask]):
        assert (part - part.mean(0)).abs().max() > 0.1


def test_the_encoding_starts_at_about_unit_variance():
    out = encoding(channels=64)(native())
    scalars, vectors, matrices = split(out.features[out.mask])
    assert 0.5 < vectors.square().mean() < 2
    assert 0.25 < scalars.square().mean() < 4
    with_pairs = matrices.abs().amax((-1, -2)) > 0
    types = native().residue_type[out.mask]
    assert torch.equal(with_pairs, torch.isin(types, torch.tensor([TYPE_OF[name] for name in PAIRS])))


def test_swapping_interchangeable_atoms_changes_nothing_at_all():
    protein, layer = native(), encoding()
    some = torch.rand(protein.residue_type.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    for where in (None, some):
        other = swapped(protein, where)
        assert not torch.equal(other.positions, protein.positions)
        assert_same_cloud(layer(other), layer(protein))


@pytest.mark.parametrize("name", list(PAIRS))
def test_half_a_pair_counts_as_missing_whichever_half_it_is(name):
    layer, clouds = encoding(), []
    protein = random_protein()
    here = protein.residue_type == TYPE_OF[name]
    first, second = PAIRS[name][0]
    for lost in ([first], [second], [first, second]):
        mask = protein.atom_mask.clone()
        for slot in lost:
            mask[here, slot] = False
        incomplete = protein.replace(atom_mask=mask).with_positions(protein.positions)
        batch = stack([incomplete])
        clouds.append(layer(batch))
        assert_same_cloud(layer(swapped(batch)), clouds[-1])
    assert_same_cloud(clouds[0], clouds[2])
    assert_same_cloud(clouds[1], clouds[2])
    whole = layer(stack([protein]))
    assert not torch.equal(clouds[0].features[0, here], whole.features[0, here])
    assert torch.equal(clouds[0].features[0, ~here], whole.features[0, ~here])


def test_missing_atoms_are_not_looked_at_but_noticed():
    layer, protein = encoding(), stack([random_protein(missing=0.3)])
    filled = protein.replace(positions=torch.where(protein.atom_mask[..., None], protein.positions, 50.0))
    assert_same_cloud(layer(filled), layer(protein))
    assert not torch.equal(layer(stack([random_protein()])).features, layer(protein).features)


def test_residues_without_ca_and_padding_are_masked():
    layer, protein = encoding(), random_protein(25)
    mask = protein.atom_mask.clone()
    mask[3, CA] = False
    cloud = layer(stack([protein.replace(atom_mask=mask).with_positions(protein.positions)], num_residues=30))
    assert cloud.mask[0].tolist() == [k != 3 and k < 25 for k in range(30)]
    assert not cloud.features[~cloud.mask].any()
    assert cloud.features[cloud.mask].abs().amax((-1, -2)).min() > 0


def test_pairs_need_degree_two():
    with pytest.raises(ValueError, match="need lmax 2 at the residue level, not 1"):
        ResidueEncoding(1, 8)


# Decoding


def transparent(channels: int = 16) -> tuple[ResidueEncoding, ResidueDecoding]:
    """Weights under which every slot and every pair has a channel of its own: decoding undoes encoding."""
    encode, decode = ResidueEncoding(2, channels).double(), ResidueDecoding(2, channels).double()
    with torch.no_grad():
        encode.atoms.copy_(torch.eye(NUM_SLOTS, channels).expand_as(encode.atoms))
        encode.halves.copy_(torch.eye(2, channels).expand_as(encode.halves))
        decode.shared.copy_(torch.eye(channels, NUM_SLOTS))
        decode.atoms.zero_()
        decode.halves.copy_(torch.eye(channels, 2)[:, None].expand_as(decode.halves))
    return encode, decode


def test_residues_of_all_types_survive_the_round_trip():
    encode, decode = transparent()
    protein = native()
    assert set(protein.residue_type[protein.residue_mask].tolist()) == set(range(len(RESIDUE_LETTERS)))
    with torch.no_grad():
        decoded = decode(encode(protein), protein.residue_type)
    expected = name_pairs(protein.positions, protein.residue_type)
    complete = (protein.atom_mask == atom_exists()[protein.residue_type]).all(-1) & protein.residue_mask
    assert complete.sum() > 270
    error = (name_pairs(decoded, protein.residue_type) - expected).norm(dim=-1)[complete] * protein.atom_mask[complete]
    assert error.max() < 1e-9


def test_the_round_trip_does_not_see_names():
    encode, decode = transparent()
    protein = native()
    with torch.no_grad():
        one, other = (decode(encode(x), protein.residue_type) for x in (protein, swapped(protein)))
    assert torch.equal(one, other)


def test_the_decoding_is_equivariant():
    torch.manual_seed(0)
    decode, cloud = ResidueDecoding(2, 16).double(), random_cloud(40, channels=16)
    types = torch.arange(40) % 20
    rotation, translation = random_motion()
    with torch.no_grad():
        still, moved = (decode(x, types.expand(3, -1)) for x in (cloud, move(cloud, rotation, translation)))
        logits = [decode.residue_logits(x) for x in (cloud, move(cloud, rotation, translation))]
    expected = transform(still.flatten(1, 2), rotation, translation).view_as(still)
    types = types.expand(3, -1)
    error = (name_pairs(expected, types) - name_pairs(moved, types)).abs() * atom_exists()[types][..., None]
    assert error.max() < 1e-10
    assert (logits[0] - logits[1]).abs().max() < 1e-10
    assert (still - cloud.positions[..., None, :]).norm(dim=-1).mean() > 0.5


def test_unknown_residues_decode_to_something_finite():
    decode, cloud = ResidueDecoding(2, 16).double(), random_cloud(channels=16)
    assert decode(cloud, torch.full((3, 24), UNKNOWN)).isfinite().all()


def test_the_assertion_of_equivariance_holds_for_encoded_clouds():
    """What users do: a layer of their own on the nodes of a protein."""
    cloud = encoding()(native())
    assert_equivariant(lambda x: x.replace(features=x.features * x.features[..., :1, :]), cloud)


# Names of interchangeable atoms


def torsions(protein: Protein) -> tuple[torch.Tensor, torch.Tensor]:
    """Absolute torsions to the first and to the second atom, for every residue with a pair."""
    first, second = [], []
    for name, atoms in NAMING.items():
        slots = [ATOM14[name].index(atom) for atom in atoms.split()]
        a, b, c, d, e = protein.positions[protein.residue_type == TYPE_OF[name]][:, slots].unbind(1)
        first.append(dihedral(a, b, c, d).abs())
        second.append(dihedral(a, b, c, e).abs())
    return torch.cat(first), torch.cat(second)


def named(protein: Protein) -> Protein:
    return protein.replace(positions=name_pairs(protein.positions, protein.residue_type))


@pytest.mark.parametrize("protein", [random_protein(400), native()], ids=["random", "native"])
def test_names_follow_the_torsion(protein):
    for before in (protein, swapped(protein)):
        first, second = torsions(before)
        against = (first > math.pi / 2) & (second < math.pi / 2)
        assert against.sum() > 3
        first, second = torsions(named(before))
        assert not ((first > math.pi / 2) & (second < math.pi / 2)).any()


def test_the_first_torsion_of_a_planar_group_is_within_90_degrees():
    first, _ = torsions(named(native()))
    assert len(first) == 55
    assert (first > math.pi / 2 + 0.2).sum() == 0  # planar to within what a simulation lets them bend


@pytest.mark.parametrize("protein", [random_protein(400), native()], ids=["random", "native"])
def test_names_do_not_depend_on_the_names_before(protein):
    once = named(protein).positions
    assert torch.equal(named(named(protein)).positions, once)
    assert torch.equal(named(swapped(protein)).positions, once)


def test_rings_stay_bonded_when_they_are_renamed():
    protein = native()
    here = protein.residue_type == TYPE_OF["TYR"]
    before, after = protein.positions[here], named(protein).positions[here]
    assert not torch.equal(before, after)
    slot = ATOM14["TYR"].index
    for a, b in (("CD1", "CE1"), ("CD2", "CE2")):
        assert (after[:, slot(a)] - after[:, slot(b)]).norm(dim=-1).sub(1.39).abs().max() < 0.1


@pytest.mark.parametrize("file", [OPEN, CLOSED])
def test_most_pairs_of_a_crystal_structure_are_named_so_already(file):
    _, protein = read(file)
    has_pair = torch.isin(protein.residue_type, torch.tensor([TYPE_OF[name] for name in PAIRS]))
    changed = (named(protein).positions != protein.positions).any(-1).any(-1)
    assert has_pair.sum() == 47
    assert not changed[~has_pair].any()
    assert changed[has_pair].double().mean() < 0.1
