"""Paths between conformations of one chain: latent Clouds between two latent Clouds, decoded; and two simple baselines.

    frames = interpolate(read_structure("open.pdb"), read_structure("closed.pdb"), model, num=25)
    write_structure(frames, "path.pdb")

A path between Clouds a and b is a function (a, b, times [T]) -> Cloud [T, n, ...] that gives a at 0 and b at 1 and
turns with them. Features of degree above 0 turn with the part of the chain that they describe, so both ends must lie in
one frame (`superposed`), and between domains that turn against each other a straight line makes them shorter than at
either end.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from ophio.autoencoder import Autoencoder, Latent
from ophio.cloud import Cloud
from ophio.constants import CA
from ophio.errors import UserError
from ophio.geometry import kabsch, safe_norm, transform
from ophio.idealize import idealize
from ophio.internal_coordinates import buildable, internal_coordinates, positions_of
from ophio.irreps import join, split, wigner_matrix
from ophio.metrics.clashes import clashes
from ophio.metrics.core import core_superposition
from ophio.metrics.rmsd import best_order
from ophio.metrics.validity import angle_outliers, bond_outliers
from ophio.pairing import MIN_RESIDUES, common_links, common_residues
from ophio.protein import Protein, stack
from ophio.residue import atom_exists

MODEL = "monomer"  # released autoencoder that paths are made with unless another is named
METHOD = "blend"
CONTACT = 15.0  # Å: about the distance of neighbouring latent nodes
CHAIN_WEIGHT = 0.3  # least weight of the distance of nodes that follow each other
RESIDUES_AT_ONCE = 4096  # decoded, or idealized, in one batch
FINISH_ROUNDS = 10
GEODESIC_STEPS, GEODESIC_RATE = 20, 0.02

LatentPath = Callable[[Cloud, Cloud, Float[Tensor, "T"]], Cloud]


def interpolate(
    protein_a: Protein,
    protein_b: Protein,
    model: Autoencoder,
    num: int = 25,
    method: str = METHOD,
    pin_ends: bool = False,
    finish: bool = True,
) -> list[Protein]:
    """`num` structures from the one chain to the other, both ends included, in the frame of the first.

    Chains of different sequences are aligned and cut to what they have in common, with a warning that says what was
    cut. Every frame has all atoms of the residue types of `protein_a`, whatever was missing.

    Args:
        method: a name in METHODS.
        pin_ends: start and end on the structures themselves (`pinned`), not on their reconstructions.
        finish: restore bonds and angles and undo clashes in every frame, by small moves (`ophio.idealize`).

    Raises:
        UserError: the two have too little in common, one is the mirror image of the other, `num` is below 2, the
            method does not exist, or it is neither "linear" nor "spherical" and the latent has scalars alone.
    """
    return path_through(superposed(common_residues([protein_a, protein_b])), model, num, method, pin_ends, finish)


def path_through(
    proteins: Sequence[Protein],
    model: Autoencoder,
    num: int = 25,
    method: str = METHOD,
    pin_ends: bool = False,
    finish: bool = True,
) -> list[Protein]:
    """The path through several conformations, `num` frames from each to the next: (k - 1)(num - 1) + 1 in all.

    The chains have the same residues (`common_residues`) and lie where they are meant to (`superposed`). The pieces
    between gaps of the chain (`common_links`) are encoded and decoded each by itself: models know no gaps. The other
    arguments, and what raises UserError: as for `interpolate`.
    """
    if num < 2:
        raise UserError(f"num={num}: a path has at least its 2 ends")
    if method not in METHODS:
        raise UserError(f"method {method}: not one of {', '.join(METHODS)}")
    linked, frames = common_links(proteins), []
    for a, b in pairwise(proteins):
        pieces = [_piece(a.crop(*ends), b.crop(*ends), model, num, method) for ends in unbroken(linked)]
        made = [_joined(parts) for parts in zip(*pieces, strict=True)]
        made = following(finished(made, linked) if finish else made, a)
        made = pinned(made, a, b) if pin_ends else made
        frames += made[1:] if frames else made
    return frames


def _piece(a: Protein, b: Protein, model: Autoencoder, num: int, method: str) -> list[Protein]:
    path = _along(PATHS.get(method, PATHS[METHOD]), *encode([a, b], model), num)
    path = shortened(path, model, a) if method == "geodesic" else path
    return decode(path, model, a)


def unbroken(linked: Bool[Tensor, "pairs"]) -> list[tuple[int, int]]:
    """First residue and end of each piece between gaps. One too short for a model stays with the next, the last with
    the one before."""
    gaps = [int(k) + 1 for k in (~linked).nonzero()[:, 0]]
    bounds = [0]
    for gap in gaps:
        if gap - bounds[-1] >= MIN_RESIDUES:
            bounds.append(gap)
    length = len(linked) + 1
    if len(bounds) > 1 and length - bounds[-1] < MIN_RESIDUES:
        bounds.pop()
    return list(pairwise([*bounds, length]))


def _joined(pieces: Sequence[Protein]) -> Protein:
    names = ("positions", "atom_mask", "residue_type", "residue_number", "insertion_code", "b_factor")
    return pieces[0].replace(**{name: torch.cat([getattr(piece, name) for piece in pieces]) for name in names})


# ------------------------------------------------------------------------------------------------------ paths of Clouds


def linear(a: Cloud, b: Cloud, times: Float[Tensor, "T"]) -> Cloud:
    """The straight line in positions and features."""
    return Cloud(_line(a.positions, b.positions, times), _line(a.features, b.features, times), _masks(a, times))


def spherical(a: Cloud, b: Cloud, times: Float[Tensor, "T"]) -> Cloud:
    """Positions and scalars on the straight line; of each feature of higher degree, norm and direction by themselves.

    The direction goes along the great circle in its 2l + 1 dimensions (Shoemake 1985).
    """
    scalars, *others = zip(split(a.features), split(b.features), strict=True)
    features = join([_line(*scalars, times), *(_great_circle(*parts, times) for parts in others)])
    return Cloud(_line(a.positions, b.positions, times), features, _masks(a, times))


def rigid(a: Cloud, b: Cloud, times: Float[Tensor, "T"]) -> Cloud:
    """Every node turns about an axis of its own, and nodes keep the distances that they see around them.

    The rotation of a node is that of its l=1 features from a to b. In the turning frame its features, and the vectors
    to the other nodes, are on a straight line. The positions are those that fit these vectors best, near ones before
    all: as-rigid-as-possible interpolation (Alexa, Cohen-Or, Levin 2000), with nodes in the place of triangles.
    """
    turn = node_rotations(a, b)
    turning = rotation_powers(turn, times)
    features = turned(_line(a.features, turned(b.features, turn.mT), times), turning)
    there, here = (c.positions[None] - c.positions[:, None] for c in (b, a))  # [n, m] from n to m
    seen = torch.einsum("tnij,tnmj->tnmi", turning, _line(here, there @ turn, times))
    weight = _weights(a, b)
    centre = _line(*(_mean(c.positions, c.mask) for c in (a, b)), times)[:, None]
    positions = _fitted(0.5 * (seen - seen.transpose(1, 2)), weight, a.mask) + centre
    return Cloud(positions, features, _masks(a, times))


def blend(a: Cloud, b: Cloud, times: Float[Tensor, "T"]) -> Cloud:
    """Half-way between `rigid` and `linear`: domains turn, and what lies between them gives."""
    stiff, straight = rigid(a, b, times), linear(a, b, times)
    return (stiff + straight) * 0.5


def node_rotations(a: Cloud, b: Cloud) -> Float[Tensor, "n 3 3"]:
    """The rotation of every node that brings its l=1 features in a closest to those in b (Kabsch, about the origin).

    Raises UserError for a latent of scalars alone.
    """
    if a.lmax < 1:
        raise UserError("a latent of scalars alone does not tell how its nodes turn: use the method linear")
    x, y = (split(cloud.features)[1].mT for cloud in (a, b))
    balanced = (torch.cat([v, -v], -2) for v in (x, y))  # of mean 0
    return kabsch(*balanced)[0]


def rotation_powers(rotation: Float[Tensor, "*batch 3 3"], times: Float[Tensor, "T"]) -> Float[Tensor, "T *batch 3 3"]:
    """Rotations about the same axes by a fraction of the angles (0 to pi)."""
    symmetric, skew = 0.5 * (rotation + rotation.mT), 0.5 * (rotation - rotation.mT)
    vector = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1)  # axis times sine
    axis = torch.linalg.eigh(symmetric)[1][..., -1]
    sine = (axis * vector).sum(-1)
    cosine = 0.5 * (rotation.diagonal(dim1=-2, dim2=-1).sum(-1) - 1)
    angle = times.view(-1, *[1] * sine.dim()) * torch.atan2(sine, cosine)
    angle, identity = angle[..., None, None], torch.eye(3).to(axis).expand(*axis.shape, 3)
    cross = torch.linalg.cross(axis[..., None, :].expand(identity.shape), identity).mT
    return identity + angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)


def turned(features: Float[Tensor, "*batch n S C"], rotation: Float[Tensor, "*#batch n 3 3"]) -> Tensor:
    """Every node's features rotated by its rotation."""
    scalars, *others = split(features)
    return join([scalars, *(wigner_matrix(degree, rotation) @ part for degree, part in enumerate(others, start=1))])


def _line(a: Tensor, b: Tensor, times: Float[Tensor, "T"]) -> Tensor:
    return torch.lerp(a[None], b[None], times.view(-1, *[1] * a.dim()))


def _great_circle(a: Float[Tensor, "n M C"], b: Float[Tensor, "n M C"], times: Float[Tensor, "T"]) -> Tensor:
    u, v = normalize(a, dim=-2), normalize(b, dim=-2)
    angle = 2 * torch.atan2(safe_norm(v - u, dim=-2), safe_norm(v + u, dim=-2))[..., None, :]
    size = _line(safe_norm(a, dim=-2, keepdim=True), safe_norm(b, dim=-2, keepdim=True), times)
    times = times.view(-1, 1, 1, 1)
    direction = normalize(((1 - times) * angle).sin() * u + (times * angle).sin() * v, dim=-2)
    defined = (angle > 1e-3) & (angle < torch.pi - 1e-3)  # else all great circles, or none, lead from u to v
    return torch.where(defined, size * direction, _line(a, b, times.flatten()))


def _weights(a: Cloud, b: Cloud) -> Float[Tensor, "n n"]:
    """How much a pair of nodes counts: those that are near in both ends, and neighbours in the chain."""
    distance = torch.maximum(torch.cdist(a.positions, a.positions), torch.cdist(b.positions, b.positions))
    weight = (-((distance / CONTACT) ** 2)).exp()
    index = torch.arange(a.num_nodes, device=weight.device)
    following = (index[:, None] - index).abs() == 1
    weight = torch.where(following, weight.clamp(min=CHAIN_WEIGHT), weight)
    return weight * a.mask * a.mask[:, None]


def _fitted(
    vectors: Float[Tensor, "T n m 3"], weight: Float[Tensor, "n m"], mask: Bool[Tensor, "n"]
) -> Float[Tensor, "T n 3"]:
    """Points of mean 0 whose differences are closest to the given ones, by weighted least squares."""
    weight = weight.double()
    # The Laplacian leaves the mean free: the ones set it to 0. Masked nodes, bound to nothing, come to lie there.
    system = torch.diag(weight.sum(-1)) - weight + (mask & mask[:, None]) + torch.diag(~mask)
    return torch.linalg.solve(system, (weight[..., None] * vectors).sum(1)).to(vectors)


def _mean(points: Float[Tensor, "*batch n 3"], mask: Bool[Tensor, "n"]) -> Float[Tensor, "*batch 3"]:
    return (points * mask[:, None]).sum(-2) / mask.sum()


def _masks(cloud: Cloud, times: Float[Tensor, "T"]) -> Bool[Tensor, "T n"]:
    return cloud.mask.expand(len(times), -1)


# -------------------------------------------------------------------------------------------------- to latents and back


@torch.no_grad()
def encode(proteins: Sequence[Protein], model: Autoencoder) -> list[Latent]:
    """The latent of each."""
    device = next(model.parameters()).device
    return [model.encode(protein.to(device)) for protein in proteins]


@torch.no_grad()
def decode(latents: Latent, model: Autoencoder, like: Protein) -> list[Protein]:
    """The frames of a batch of latents, as the residues of `like` with all their atoms."""
    seen, frames = model.seen(like), []
    atom_mask = atom_exists()[seen.residue_type] & seen.residue_mask[:, None]
    for part in _parts(latents):
        types = seen.residue_type.to(part.residue_mask.device).expand(len(part.residue_mask), -1)
        positions = model.decode_atoms(part, types).positions.cpu()
        complete = seen.replace(atom_mask=atom_mask, b_factor=torch.zeros_like(positions[0, ..., 0]))
        frames += [complete.with_positions(frame) for frame in positions]
    return frames


def finished(frames: Sequence[Protein], linked: Bool[Tensor, "pairs"]) -> list[Protein]:
    """The frames idealized, bonded where the chain is; those that keep outliers or clashes again, a few times."""
    done, rough = list(frames), list(range(len(frames)))
    for _ in range(FINISH_ROUNDS):
        for part in _split(rough, frames[0].num_residues):
            batch = idealize(stack([done[k] for k in part]), linked.expand(len(part), -1))
            for k, positions in zip(part, batch.positions, strict=True):
                done[k] = frames[k].with_positions(positions)
        rough = [k for k in rough if not _sound(done[k], linked)]
    return done


def _sound(frame: Protein, linked: Bool[Tensor, "pairs"]) -> bool:
    """No outlier of bonds and angles and no clash."""
    atoms = frame.positions, frame.atom_mask
    outliers = bond_outliers(*atoms, linked) + angle_outliers(*atoms, linked)
    return bool(outliers == 0) and bool(clashes(*atoms, frame.residue_type) == 0)


def _split(items: Sequence[int], num_residues: int) -> Iterator[Sequence[int]]:
    """Frames that fit into one batch."""
    size = max(1, RESIDUES_AT_ONCE // num_residues)
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _parts(latents: Latent) -> Iterator[Latent]:
    for part in _split(range(len(latents.residue_mask)), latents.residue_mask.shape[-1]):
        yield latents.map(lambda t, part=part: t[part[0] : part[-1] + 1])


def _along(path: LatentPath, a: Latent, b: Latent, num: int) -> Latent:
    return _with_cloud(a, path(a.cloud, b.cloud, torch.linspace(0, 1, num).to(a.cloud.positions)))


def _with_cloud(latent: Latent, cloud: Cloud) -> Latent:
    names = (t.expand(len(cloud.mask), -1) for t in (latent.residue_mask, latent.residue_number, latent.insertion_code))
    return Latent(cloud, *names, latent.chain_id, latent.name)


def shortened(path: Latent, model: Autoencoder, like: Protein) -> Latent:
    """A path of smaller decoded length: a few gradient steps on the latents between its ends (a discrete geodesic).

    Minimised is the sum of squared distances of the CA atoms of consecutive frames; for even steps that is the squared
    length over the number of steps (Arvanitidis, Hansen, Hauberg 2018, arXiv:1710.11379, equation 8).
    """
    cloud = path.cloud
    types = model.seen(like).residue_type.to(path.residue_mask.device).expand(len(path.residue_mask), -1)
    inner = [t[1:-1].clone().requires_grad_() for t in (cloud.positions, cloud.features)]
    if not len(inner[0]):
        return path
    optimizer = torch.optim.Adam(inner, lr=GEODESIC_RATE)

    def whole() -> Latent:
        ends = zip((cloud.positions, cloud.features), inner, strict=True)
        return _with_cloud_of(path, *(torch.cat([t[:1], between, t[-1:]]) for t, between in ends))

    for _ in range(GEODESIC_STEPS):
        optimizer.zero_grad()
        parts = (model.decode_atoms(part, types[: len(part.residue_mask)]) for part in _parts(whole()))
        ca = torch.cat([part.positions[..., CA, :] for part in parts])
        ((ca[1:] - ca[:-1]).square().sum(-1) * path.residue_mask[:-1]).sum().backward()
        optimizer.step()
    return whole().map(lambda t: t.detach())


def _with_cloud_of(latents: Latent, positions: Tensor, features: Tensor) -> Latent:
    return replace(latents, cloud=Cloud(positions, features, latents.cloud.mask))


# ------------------------------------------------------------------------------------------------------------- the ends


def superposed(proteins: Sequence[Protein]) -> list[Protein]:
    """Each chain moved onto the one before it, by the part that moves least (`metrics.core_superposition`)."""
    placed = list(proteins[:1])
    for protein in proteins[1:]:
        core = core_superposition(protein.ca, placed[-1].ca, protein.residue_mask)
        placed.append(protein.with_positions(transform(protein.positions, core.rotation, core.translation)))
    return placed


def following(frames: Sequence[Protein], start: Protein) -> list[Protein]:
    """The frames with interchangeable atoms named so that they move least: from `start`, then from frame to frame."""
    named, before = [], start
    for frame in frames:
        shared = frame.atom_mask & before.atom_mask
        positions = best_order(frame.positions, before.positions, shared, frame.residue_type, superimpose=False)
        before = frame.with_positions(positions)
        named.append(before)
    return named


def pinned(frames: Sequence[Protein], start: Protein, end: Protein) -> list[Protein]:
    """The frames moved by what the first lacks to `start`, fading linearly along the path, and the last to `end`.

    Atoms that an end does not have move with their CA. The end's interchangeable atoms take the names that the path
    gives them.
    """
    (end,) = following([end], frames[-1])
    first, last = _residual(start, frames[0]), _residual(end, frames[-1])
    times = torch.linspace(0, 1, len(frames))
    return [f.with_positions(f.positions + (1 - t) * first + t * last) for f, t in zip(frames, times, strict=True)]


def _residual(true: Protein, frame: Protein) -> Float[Tensor, "L 14 3"]:
    difference = true.positions - frame.positions
    return torch.where(true.atom_mask[..., None], difference, difference[:, CA : CA + 1])


# ------------------------------------------------------------------------------------------------------------ baselines


def cartesian_line(a: Protein, b: Protein, num: int) -> list[Protein]:
    """Every atom that both have on a straight line."""
    (b,) = following([b], a)
    both = a.replace(atom_mask=a.atom_mask & b.atom_mask)
    return [both.with_positions(x) for x in _line(a.positions, b.positions, torch.linspace(0, 1, num))]


def torsion_path(a: Protein, b: Protein, num: int) -> list[Protein]:
    """Every bond length, angle and torsion on a straight line, the chain rebuilt from them, laid on the other line."""
    line = cartesian_line(a, b, num)
    (b,) = following([b], a)
    types, mask = a.residue_type, buildable(line[0].atom_mask, a.residue_type)
    here, there = (internal_coordinates(protein.positions, types) for protein in (a, b))
    built = positions_of(here.toward(there, torch.linspace(0, 1, num)), types)
    frames = []
    for positions, straight in zip(built, line, strict=True):
        motion = kabsch(positions[:, CA], straight.ca)
        frames.append(straight.replace(atom_mask=mask).with_positions(transform(positions, *motion)))
    return frames


PATHS: dict[str, LatentPath] = {"linear": linear, "spherical": spherical, "rigid": rigid, "blend": blend}
METHODS = (*PATHS, "geodesic")
