"""The denoiser: an SO(3)-equivariant transformer over the few nodes of a latent."""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ophio.cloud import Cloud
from ophio.diffusion.conditions import Conditions
from ophio.irreps import Linear, join, pad_degrees, solid_harmonics, split
from ophio.layers import EquivariantNorm, SelfInteraction

RADIAL = 16  # radial functions of a distance
REACH = 32  # nodes along the chain that relative positions tell apart
LENGTH_UNIT = 100.0  # residues
CONTACT_RADIAL = 6  # radial functions of the distance of two points
CONTACT_CHANNELS = 64


class Denoiser(nn.Module):
    """Noisy latent, noise level and conditions to what the process predicts (`diffusion.process`).

    Every block attends over all nodes, with the geometry of each pair in logits and messages, and lets each node's
    features interact (the paper's self-interaction). Noise level, length and content enter as scalars. A previous
    estimate of the clean Cloud may come along (self-conditioning, Chen et al. 2022, arXiv:2208.04202).

    Args:
        latent_channels, latent_lmax: of the autoencoder's latent.
        channels: width of the features inside.
        lmax: highest degree inside.
        depth: blocks.
        heads: of the attention; divides `channels`.
        pair_channels: width of what is known of a pair of nodes.
        points: places that each node marks in space, as a linear map of its latent (so they can stand for its residues).
            All distances between the points of two nodes enter their pair, and messages can point from one to the
            other: what two stretches of chain need to pack without passing through each other. 0 for none.
        compactness: the radius of gyration can be asked for, beside helix and strand.
        origin: designed or natural proteins can be asked for.

    Raises ValueError for an `lmax` below 1 or the latent's, for points of a latent without vectors, and for heads that
    do not divide the widths.
    """

    def __init__(
        self,
        latent_channels: int,
        latent_lmax: int = 1,
        channels: int = 128,
        lmax: int = 1,
        depth: int = 8,
        heads: int = 8,
        pair_channels: int = 32,
        points: int = 0,
        compactness: bool = False,
        origin: bool = False,
    ):
        super().__init__()
        if not 1 <= max(1, latent_lmax) <= lmax:
            raise ValueError(
                f"lmax {lmax}: the denoiser needs at least 1 and the latent's highest degree {latent_lmax}"
            )
        if points and latent_lmax < 1:
            raise ValueError(
                f"points={points}: they are placed by vectors, which a latent of lmax {latent_lmax} has not"
            )
        self.latent_channels, self.latent_lmax, self.lmax = latent_channels, latent_lmax, lmax
        self.condition = ConditionEmbedding(channels, compactness, origin)
        self.order = nn.Linear(2 * len(_FREQUENCIES) * 2, channels)
        # both clouds' features, and in degree 1 their positions
        widths = [2 * latent_channels + 2 * (degree == 1) for degree in range(max(1, latent_lmax) + 1)]
        self.embed = Linear(widths, channels)
        self.pair = PairEmbedding(pair_channels)
        self.contacts = ContactEmbedding(latent_channels, points, channels) if points else None
        self.blocks = nn.ModuleList(DenoiserBlock(lmax, channels, heads, pair_channels, points) for _ in range(depth))
        self.norm = EquivariantNorm(lmax, channels)
        self.out = Linear([channels] * (lmax + 1), latent_channels + 1, out_lmax=max(1, latent_lmax), gain=0.3)

    def forward(
        self,
        noisy: Cloud,
        noise_level: Float[Tensor, "batch"],
        conditions: Conditions,
        previous: Cloud | None = None,
    ) -> Cloud:
        """`noisy`, `previous`: centred, of about unit variance. `noise_level`: any smooth measure of it, of order 1."""
        previous = noisy * 0.0 if previous is None else previous
        features = self._embed(noisy, previous)
        order = self.order(_chain_order(noisy.mask).to(features.dtype))
        features = features + pad_degrees(order[..., None, :], self.lmax)
        condition = self.condition(noise_level, conditions)
        pairs = Pairs(noisy, previous, self.pair, self.lmax)
        contacts = None if self.contacts is None else self.contacts(noisy, previous, condition)
        for block in self.blocks:
            features = block(features, noisy, condition, pairs, contacts)
        out = self.out(split(self.norm(features)))
        latent = pad_degrees(out[..., :-1], self.latent_lmax)
        return Cloud(out[..., 1:4, -1], latent, noisy.mask).center()

    def _embed(self, noisy: Cloud, previous: Cloud) -> Tensor:
        lmax = max(1, self.latent_lmax)
        parts = list(split(pad_degrees(torch.cat([noisy.features, previous.features], dim=-1), lmax)))
        positions = torch.stack([noisy.positions, previous.positions], dim=-1)
        parts[1] = torch.cat([parts[1], positions], dim=-1)
        return pad_degrees(self.embed(parts), self.lmax)


class DenoiserBlock(nn.Module):
    """Attention over the nodes, then self-interaction; the condition scales what enters and shifts the scalars."""

    def __init__(self, lmax: int, channels: int, heads: int, pair_channels: int, points: int = 0):
        super().__init__()
        self.channels = channels
        self.norm = EquivariantNorm(lmax, channels, affine=False)
        self.modulation = nn.Linear(channels, (lmax + 3) * channels)
        self.attention = PairAttention(lmax, channels, heads, pair_channels)
        self.contact = ContactMessages(lmax, channels, heads, points) if points else None
        self.interaction = SelfInteraction(lmax, channels)

    def forward(
        self, features: Tensor, cloud: Cloud, condition: Tensor, pairs: "Pairs", contacts: "Contacts | None"
    ) -> Tensor:
        shift, late_shift, *scales = self.modulation(condition)[:, None, None].split(self.channels, dim=-1)
        parts = [part * (1 + scale) for part, scale in zip(split(self.norm(features)), scales, strict=True)]
        parts[0] = parts[0] + shift
        entering = join(parts)
        features = features + self.attention(entering, pairs)
        if self.contact is not None:
            features = features + self.contact(entering, contacts, pairs.real)
        scalars, *rest = split(features)
        cloud = cloud.replace(features=join([scalars + late_shift, *rest]))
        return self.interaction(cloud).features


class PairAttention(nn.Module):
    """Multi-head attention whose logits and messages know where nodes lie relative to each other.

    Logits: inner products of queries and keys over all components (invariant), a bias for each pair, and the component
    of the pair's direction along a vector of either node. Messages: values, and harmonics of the direction weighted by
    the pair and the sender's scalars.

    Args:
        lmax, channels, heads: of the features; `heads` divides `channels`.
        pair_channels: of `Pairs.features`.
        edge_channels: harmonics of each degree in a message; a multiple of `heads`.

    Raises ValueError for heads that do not divide `channels` and `edge_channels`.
    """

    def __init__(self, lmax: int, channels: int, heads: int, pair_channels: int, edge_channels: int = 32):
        super().__init__()
        if channels % heads or edge_channels % heads:
            raise ValueError(f"{heads} heads do not divide {channels} channels and {edge_channels} edge channels")
        self.heads, self.edge_channels = heads, edge_channels
        self.query_key_value = Linear([channels] * (lmax + 1), 3 * channels, bias=False)
        self.pointers = nn.Linear(channels, 2 * heads, bias=False)  # one vector a head for query and key
        self.bias = nn.Linear(pair_channels, heads)
        self.radial = nn.Linear(pair_channels, edge_channels)
        self.sender = nn.Linear(channels, edge_channels)
        self.out = Linear([channels + edge_channels] * (lmax + 1), channels, gain=0.5)

    def forward(self, features: Float[Tensor, "batch n S C"], pairs: "Pairs") -> Float[Tensor, "batch n S C"]:
        batch, nodes, components, channels = features.shape
        mapped = self.query_key_value(split(features))
        query, key, value = rearrange(mapped, "b n s (three h d) -> three b h n (s d)", three=3, h=self.heads)
        logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + self._geometric_logits(features, pairs)
        weights = logits.masked_fill(~pairs.real[:, None, None, :], -torch.inf).softmax(-1)
        values = rearrange(weights @ value, "b h n (s d) -> b n s (h d)", s=components)
        edges = self.radial(pairs.features) * self.sender(features[:, :, 0])[:, None]
        edges = edges.unflatten(-1, (self.heads, -1)) * rearrange(weights, "b h i j -> b i j h 1")
        directions = pairs.harmonics.transpose(-1, -2) @ edges.flatten(-2)  # sum over j: [b, i, s, edge]
        return self.out(split(torch.cat([values, directions], dim=-1)))

    def _geometric_logits(self, features: Tensor, pairs: "Pairs") -> Tensor:
        of_query, of_key = self.pointers(features[:, :, 1:4]).chunk(2, dim=-1)  # [b, n, 3, h]
        direction = pairs.harmonics[..., 1:4]
        along_query = direction @ of_query  # [b, i, j, h]
        along_key = (direction.transpose(1, 2) @ of_key).transpose(1, 2)
        return rearrange(self.bias(pairs.features) + along_query + along_key, "b i j h -> b h i j")


class ContactMessages(nn.Module):
    """What each node learns from where its points lie relative to every other node's.

    A node i takes from a node j, for each head, a scalar and a vector: a sum of the points of both, seen from i, with
    coefficients that depend on all distances between them. Heads weigh the nodes j by attention on the same distances.

    Args:
        lmax, channels: of the features.
        heads: how many scalars and vectors are taken.
        points: of every node, see `ContactEmbedding`.
    """

    def __init__(self, lmax: int, channels: int, heads: int, points: int):
        super().__init__()
        self.heads = heads
        self.logits = nn.Linear(CONTACT_CHANNELS, heads)
        self.sender = nn.Linear(channels, heads)
        self.coefficients = nn.Linear(CONTACT_CHANNELS, heads * (1 + 4 * points))
        self.out = Linear([heads, heads], channels, gain=0.0)  # no effect at first: training starts from what is there
        self.lmax = lmax

    def forward(
        self, features: Float[Tensor, "batch n S C"], contacts: "Contacts", real: Bool[Tensor, "batch n"]
    ) -> Float[Tensor, "batch n S C"]:
        logits = self.logits(contacts.features) + self.sender(features[:, :, 0])[:, None]
        weights = logits.masked_fill(~real[:, None, :, None], -torch.inf).softmax(2)  # [b, i, j, h]
        coefficients = self.coefficients(contacts.features).unflatten(-1, (self.heads, -1)) * weights[..., None]
        scalars, own, others = coefficients.split([1, *[contacts.own.shape[2]] * 2], dim=-1)
        own = own.sum(2) @ contacts.own
        others = torch.einsum("bijhp,bijpx->bihx", others, contacts.others)
        vectors = rearrange(own + others, "b i h x -> b i x h")
        return pad_degrees(self.out([rearrange(scalars.sum(2), "b i h one -> b i one h"), vectors]), self.lmax)


class Pairs:
    """What is known of every pair of nodes, for all blocks: invariant features, harmonics of the direction, who is real."""

    def __init__(self, noisy: Cloud, previous: Cloud, embedding: "PairEmbedding", lmax: int):
        vectors = noisy.positions[:, None] - noisy.positions[:, :, None]
        expected = previous.positions[:, None] - previous.positions[:, :, None]
        # directions where they are best known: inside the unit ball, smooth at 0
        self.harmonics = solid_harmonics(_squash(vectors), lmax) + solid_harmonics(_squash(expected), lmax)
        self.features = embedding(vectors, expected)
        self.real = noisy.mask


class PairEmbedding(nn.Module):
    """Distances in the noisy and in the previous Cloud, the angle between the two, and separation along the chain."""

    def __init__(self, channels: int):
        super().__init__()
        self.separation = nn.Embedding(2 * REACH + 1, channels)
        self.distances = nn.Linear(2 * RADIAL + 1, channels)
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(channels, channels), nn.SiLU())

    def forward(
        self, noisy: Float[Tensor, "batch n n 3"], previous: Float[Tensor, "batch n n 3"]
    ) -> Float[Tensor, "batch n n P"]:
        agreement = (_squash(noisy) * _squash(previous)).sum(-1, keepdim=True)
        known = torch.cat([_radial(noisy), _radial(previous), agreement], dim=-1)
        return self.mlp(self.separation(_separation(noisy)) + self.distances(known))


class Contacts(NamedTuple):
    """Where the points of two nodes lie relative to each other, in the noisy (first half) and in the previous Cloud."""

    features: Float[Tensor, "batch n n K"]  # of all distances between them
    own: Float[Tensor, "batch n p 3"]  # points of a node, from where it is
    others: Float[Tensor, "batch n n p 3"]  # [i, j]: points of node j, from where node i is


class ContactEmbedding(nn.Module):
    """Marks points of every node and embeds the distances between those of two nodes.

    Args:
        latent_channels: of the Cloud; degrees above 1 do not enter.
        points: of each node.
        channels: of the condition, which tells how far the noisy Cloud can be trusted.
    """

    def __init__(self, latent_channels: int, points: int, channels: int):
        super().__init__()
        self.place = nn.Linear(latent_channels, points, bias=False)
        self.distances = nn.Linear(2 * points**2 * CONTACT_RADIAL, CONTACT_CHANNELS)
        self.condition = nn.Linear(channels, CONTACT_CHANNELS)
        self.separation = nn.Embedding(2 * REACH + 1, CONTACT_CHANNELS)
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(CONTACT_CHANNELS, CONTACT_CHANNELS), nn.SiLU())

    def forward(self, noisy: Cloud, previous: Cloud, condition: Float[Tensor, "batch D"]) -> Contacts:
        own, others, known = zip(*map(self._points, (noisy, previous)), strict=True)
        context = self.separation(_separation(noisy.mask)) + self.condition(condition)[:, None, None]
        features = self.mlp(self.distances(torch.cat(known, dim=-1)) + context)
        return Contacts(features, torch.cat(own, dim=2), torch.cat(others, dim=3))

    def _points(self, cloud: Cloud) -> tuple[Tensor, Tensor, Tensor]:
        offsets = self.place(cloud.features[:, :, 1:4]).mT  # [b, n, p, 3]
        placed = offsets + cloud.positions[:, :, None]
        seen = placed[:, None] - cloud.positions[:, :, None, None]
        return offsets, seen, _contact_radial(_distances(placed))


class ConditionEmbedding(nn.Module):
    """Noise level, length and, where asked for, secondary-structure content, compactness and origin, as one vector."""

    def __init__(self, channels: int, compactness: bool = False, origin: bool = False):
        super().__init__()
        self.compactness, self.origin = compactness, origin
        self.columns = [0, 1] + [2] * compactness + [3] * origin  # of `Conditions.content`
        self.mlp = nn.Sequential(
            nn.Linear(2 * len(_LEVELS) + 2 + 2 * len(self.columns), channels),
            nn.SiLU(),
            nn.Linear(channels, channels),
            nn.SiLU(),
        )

    def forward(self, noise_level: Float[Tensor, "batch"], conditions: Conditions) -> Float[Tensor, "batch D"]:
        phase = noise_level[:, None] * _LEVELS.to(noise_level)
        length = conditions.num_residues.to(noise_level) / LENGTH_UNIT
        asked = (conditions.content - _TYPICAL.to(conditions.content)) / _SPREAD.to(conditions.content)
        asked = asked[:, self.columns]
        known, content = asked.isfinite(), asked.nan_to_num(0.0).to(noise_level)
        parts = [phase.sin(), phase.cos(), length[:, None], length.log()[:, None], content, known.to(noise_level)]
        return self.mlp(torch.cat(parts, dim=-1))


_FREQUENCIES = math.pi * 2.0 ** -torch.arange(8)  # of the place in a chain: periods of 2 to 256 nodes
_TYPICAL, _SPREAD = torch.tensor([0.0, 0.0, 2.25, 0.5]), torch.tensor([1.0, 1.0, 0.2, 0.5])  # of `Conditions.content`
_LEVELS = math.pi * 2.0 ** torch.arange(-2.0, 4.0)  # of the noise level


def _chain_order(mask: Tensor) -> Float[Tensor, "batch n F"]:
    """Where a node stands, counted from either end of its chain."""
    node = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    from_end = mask.sum(-1, keepdim=True) - 1 - node
    phase = torch.stack([node, from_end], dim=-1)[..., None] * _FREQUENCIES.to(mask.device)
    return torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(-2)


def _separation(nodes: Tensor) -> Int[Tensor, "n n"]:
    """Steps along the chain from one node to another, numbered from 0 for REACH or more steps back."""
    node = torch.arange(nodes.shape[1], device=nodes.device)
    return (node[None] - node[:, None]).clamp(-REACH, REACH) + REACH


def _squash(vectors: Tensor) -> Tensor:
    return vectors * (1 + vectors.square().sum(-1, keepdim=True)).rsqrt()


def _distances(points: Float[Tensor, "batch n p 3"]) -> Float[Tensor, "batch n n p*p"]:
    """All distances between the points of two nodes."""
    flat = rearrange(points, "b n p x -> b (n p) x")
    square = (flat[:, :, None] - flat[:, None]).square().sum(-1)
    each = points.shape[2]
    return rearrange((square + 1e-4).sqrt(), "b (i p) (j q) -> b i j (p q)", p=each, q=each)


def _contact_radial(distance: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch _"]:
    """Gaussians of distances from 0 to 2.5, in units of a latent position: finer than a residue's size."""
    centres = 2.5 * torch.linspace(0, 1, CONTACT_RADIAL, device=distance.device, dtype=distance.dtype)
    return torch.exp(-2.0 * (distance[..., None] - centres).square()).flatten(-2)


def _radial(vectors: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch R"]:
    """Gaussians of the distance, from 0 to 6 standard deviations of a coordinate, wider where it is larger."""
    distance = (vectors.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    centres = 6.0 * torch.linspace(0, 1, RADIAL, device=vectors.device, dtype=vectors.dtype) ** 1.5
    widths = 0.25 + 0.1 * centres
    return torch.exp(-0.5 * ((distance - centres) / widths).square())
