"""Paths between two latent Clouds.

A path between Clouds a and b is a function (a, b, times [T]) -> Cloud [T, n, ...] that gives a at 0 and b at 1 and
turns with them. Features of degree above 0 turn with the part of the chain that they describe, so both ends must lie in
one frame (`interpolation.superposed`), and between domains that turn against each other a straight line makes them
shorter than at either end.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from ophio.cloud import Cloud
from ophio.errors import UserError
from ophio.geometry import kabsch, safe_norm
from ophio.irreps import join, split, wigner_matrix

CONTACT = 15.0  # Å: about the distance of neighbouring latent nodes
CHAIN_WEIGHT = 0.3  # least weight of the distance of nodes that follow each other

LatentPath = Callable[[Cloud, Cloud, Float[Tensor, "T"]], Cloud]


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


PATHS: dict[str, LatentPath] = {"linear": linear, "spherical": spherical, "rigid": rigid, "blend": blend}
