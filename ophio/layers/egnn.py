"""The baseline: an EGNN (Satorras, Hoogeboom & Welling 2021, arXiv:2102.09844) with many vectors at each node.

Nodes have scalars and vectors (features of lmax 1) and no tensor products: messages are made of invariants alone,
vectors are sums of vectors times learned scalars. Hence no l=2, no cross products, and no way to tell left from right:
these layers are equivariant to reflections, too. They take the place of ophio's own in `Autoencoder(architecture="egnn")`;
what is linear there (pooling of a window, the transposed convolution) is the same layer, at lmax 1.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ophio.cloud import Cloud
from ophio.irreps import Linear, join, solid_harmonics, split, symmetric_traceless
from ophio.layers.norm import EquivariantNorm
from ophio.layers.sequence import SequenceConvolution, num_windows, overhang


def window_nodes(num_nodes: int, kernel: int, stride: int) -> tuple[Int[Tensor, "t k"], Bool[Tensor, "t k"]]:
    """The nodes in each window of `ophio.layers.sequence`, and which of them lie within the chain."""
    first = torch.arange(num_windows(num_nodes, kernel, stride)) * stride - overhang(kernel, stride)
    index = first[:, None] + torch.arange(kernel)
    return index.clamp(0, num_nodes - 1), (index >= 0) & (index < num_nodes)


class Messages(nn.Module):
    """Each node receives a message from every node k of its window (equations 3 to 6, k as an attribute of the edge):

        m_k = phi_e(h, h_k, |p_k - p|^2, k)
        v <- v + sum_k W_k phi_x(m_k) (p_k - p)
        h <- h + phi_h(h, sum_k U_k m_k)

    h are scalars; v are vectors from a node's position x; p, the channels of coordinates, are points at x + A v. The
    points a node receives with have an A of their own, so that a distance may be one between any of its atoms.

    Args:
        senders: channels of the nodes that send.
        channels: of those that receive; also points, and width of the messages.
        kernel: window size K.
        stride: between windows; the receivers of a longer stride are made before (`EGNNConvolution`).
        length_scale: typical distance in the window, Å; vectors between positions are measured in it.
    """

    def __init__(self, senders: int, channels: int, kernel: int, stride: int = 1, length_scale: float = 5.0):
        super().__init__()
        self.kernel, self.stride, self.length_scale = kernel, stride, length_scale
        self.send = Linear([senders] * 2, channels)
        self.receive = Linear([channels] * 2, channels)
        self.reach = nn.Parameter(torch.ones(channels))  # a channel may become a mere vector: of differences of v alone
        self.offset = nn.Parameter(torch.zeros(kernel, channels))
        self.distance = nn.Linear(channels, channels)
        self.message = nn.Sequential(nn.SiLU(), nn.Linear(channels, channels), nn.SiLU())
        self.weight = nn.Linear(channels, channels)
        self.gather = Linear([kernel * channels] * 2, channels, gain=0.5)
        self.update = nn.Sequential(nn.Linear(2 * channels, channels), nn.SiLU(), nn.Linear(channels, channels))

    def forward(self, receivers: Cloud, senders: Cloud) -> Float[Tensor, "batch t 4 C"]:
        """What is to be added to the features of the receivers."""
        index, inside = (x.to(senders.mask.device) for x in window_nodes(senders.num_nodes, self.kernel, self.stride))
        real = (senders.mask[:, index] & inside)[..., None]
        arrows = (senders.positions[:, index] - receivers.positions[:, :, None]) / self.length_scale
        from_k, points_k = split(_take(self.send(split(senders.features)), index))
        own, points = split(self.receive(split(receivers.features))[:, :, None])
        between = (points_k + arrows[..., None] * self.reach - points) * real[..., None]
        # the logarithm keeps far nodes (a break in the chain) from drowning the others
        invariants = self.distance(between.square().sum(-2).log1p())
        messages = self.message((from_k + own).squeeze(-2) + self.offset + invariants) * real
        between = between * (1 + self.weight(messages))[..., None, :]
        parts = [rearrange(x, "b t k s c -> b t s (k c)") for x in (messages[..., None, :], between)]
        scalars, vectors = split(self.gather(parts))
        known = split(receivers.features)[0]
        return join([self.update(torch.cat([known, scalars], dim=-1)), vectors])


def _take(x: Float[Tensor, "batch n *rest"], index: Int[Tensor, "t k"]) -> Float[Tensor, "batch t k *rest"]:
    return x.index_select(1, index.flatten()).unflatten(1, index.shape)


class EGNNBlock(nn.Module):
    """Mixing at constant length: messages along the chain, from a node to itself included."""

    def __init__(self, channels: int, kernel: int, length_scale: float):
        super().__init__()
        self.norm = EquivariantNorm(1, channels)
        self.messages = Messages(channels, channels, kernel, length_scale=length_scale)

    def forward(self, cloud: Cloud) -> Cloud:
        normed = cloud.replace(features=self.norm(cloud.features))
        return cloud.replace(features=cloud.features + self.messages(normed, normed))


class EGNNConvolution(nn.Module):
    """Windows of K nodes to one node each: a linear map of the window, then messages from the window to it.

    The linear map is ophio's `SequenceConvolution` at lmax 1; it gives the positions and the mask.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, length_scale: float):
        super().__init__()
        self.pool = SequenceConvolution(1, in_channels, out_channels, kernel, stride, length_scale)
        self.messages = Messages(in_channels, out_channels, kernel, stride, length_scale)

    def forward(self, cloud: Cloud) -> Cloud:
        pooled = self.pool(cloud)
        return pooled.replace(features=pooled.features + self.messages(pooled, cloud))


# Interchangeable atoms are l=2 features of a residue (`ophio.residue`), which an EGNN has not


def fold_pairs(cloud: Cloud) -> Cloud:
    """lmax 2 -> 1: Q v is added to the vectors v, where Q = d d^T - |d|^2 / 3 is the matrix of the l=2 feature.

    It points along d, the half difference of two interchangeable atoms, with weight d.v: a vector times an invariant,
    blind to the order of the two.
    """
    scalars, vectors, pairs = split(cloud.features)[:3]
    turned = torch.einsum("blcij,bljc->blic", symmetric_traceless(pairs.mT), vectors)
    return cloud.replace(features=join([scalars, vectors + turned]))


def unfold_pairs(cloud: Cloud) -> Cloud:
    """lmax 1 -> 2: the l=2 feature of each channel is that of its vector, taken as half a difference of two atoms."""
    pairs = solid_harmonics(split(cloud.features)[1].mT, 2)[..., 4:].mT
    return cloud.replace(features=join([cloud.features, pairs]))
