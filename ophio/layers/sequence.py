"""Convolutions along the chain: strided (fewer nodes, wider) and transposed (more nodes, narrower).

Lengths: without stride a convolution keeps the nodes it gets (windows are centred). With stride S, window t covers
inputs t S .. t S + K - 1, and the last window may reach over the end: the paper's ladder 161 -> 53 -> 17 -> 5 -> 1 for
K = 5, S = 3, and any other length with masked nodes.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ophio.cloud import Cloud
from ophio.irreps import Linear, expand_degrees, solid_harmonics, split


def num_windows(num_nodes: int, kernel: int, stride: int) -> int:
    """Nodes that come out of a convolution over `num_nodes` nodes."""
    if stride == 1:
        return num_nodes
    return max(0, -(-(num_nodes - kernel) // stride)) + 1


def window_mask(mask: Bool[Tensor, "batch n"], kernel: int, stride: int) -> Bool[Tensor, "batch t"]:
    """A window is real if one of the inputs that no earlier window covers is real: padding adds no real window."""
    if stride == 1:
        return mask
    windows = _windows(mask, kernel, stride)
    fresh = windows[..., kernel - stride :].any(-1)
    return torch.cat([windows[:, :1].any(-1), fresh[:, 1:]], dim=1)


def _padding(num_nodes: int, kernel: int, stride: int) -> tuple[int, int]:
    """Nodes to add on the left and right so that the windows tile the input."""
    left = kernel // 2 if stride == 1 else 0
    covered = (num_windows(num_nodes, kernel, stride) - 1) * stride + kernel
    return left, covered - left - num_nodes


def _windows(x: Tensor, kernel: int, stride: int) -> Tensor:
    """[batch, n, ...] -> [batch, t, ..., kernel], zeros (False) beyond the ends."""
    padding = _padding(x.shape[1], kernel, stride)
    return F.pad(x, (0, 0) * (x.dim() - 2) + padding).unfold(1, kernel, stride)


def _check(kernel: int, stride: int) -> None:
    if not 1 <= stride <= kernel:
        raise ValueError(f"stride {stride} with kernel {kernel} would skip nodes: stride must lie between 1 and kernel")
    if stride == 1 and kernel % 2 == 0:
        raise ValueError(f"kernel {kernel} without stride has no centre: make it odd")


class SequenceConvolution(nn.Module):
    """Windows of K neighbours to one node each; every offset in the window has its own linear map.

    The new position is a convex combination of the window's positions with learned weights; the vectors from it to the
    window's nodes enter as harmonics with learned radial weights.

    Args:
        lmax: highest degree.
        in_channels, out_channels: width before and after.
        kernel: window size K.
        stride: step S between windows; 1 keeps all nodes (and their positions) and adds a residual.
        length_scale: typical distance in the window, Å; vectors are measured in it.
        edge_channels: radial functions for each degree and offset.
    """

    def __init__(
        self,
        lmax: int,
        in_channels: int,
        out_channels: int,
        kernel: int = 5,
        stride: int = 1,
        length_scale: float = 5.0,
        edge_channels: int = 8,
    ):
        super().__init__()
        _check(kernel, stride)
        if stride == 1 and in_channels != out_channels:
            raise ValueError(f"a convolution without stride is residual: {in_channels} channels cannot become {out_channels}")
        self.lmax, self.kernel, self.stride, self.length_scale = lmax, kernel, stride, length_scale
        self.position_logits = nn.Parameter(torch.zeros(kernel)) if stride > 1 else None
        self.radial = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, (lmax + 1) * edge_channels))
        width = kernel * (in_channels + edge_channels)
        self.linear = Linear([width] * (lmax + 1), out_channels, gain=0.5 if stride == 1 else 1.0)

    def forward(self, cloud: Cloud, features: Float[Tensor, "batch n S C"] | None = None) -> Cloud:
        """`features`: what enters the convolution instead of the cloud's own (a normalised copy, say)."""
        features = cloud.features if features is None else features
        real = _windows(cloud.mask, self.kernel, self.stride)
        neighbours = rearrange(_windows(cloud.positions, self.kernel, self.stride), "b t x k -> b t k x")
        positions = self._centres(cloud.positions, neighbours, real)
        edges = self._edges(neighbours - positions[:, :, None], real)
        inputs = _windows(features * cloud.mask[..., None, None], self.kernel, self.stride)
        windows = torch.cat([rearrange(inputs, "b t s c k -> b t s (k c)"), edges], dim=-1)
        out = self.linear(split(windows))
        if self.stride == 1:
            return cloud.replace(features=cloud.features + out)
        return Cloud(positions, out, window_mask(cloud.mask, self.kernel, self.stride))

    def _centres(self, positions: Tensor, neighbours: Tensor, real: Tensor) -> Tensor:
        if self.position_logits is None:
            return positions
        # a window without real nodes keeps finite weights: they multiply zeros
        weights = (self.position_logits.softmax(0) + 1e-6) * real
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)
        return (weights[..., None] * neighbours).sum(-2)

    def _edges(self, vectors: Tensor, real: Tensor) -> Tensor:
        # u = r / sqrt(r^2 + s^2) lies inside the unit ball, is smooth at 0 and keeps the length
        square = vectors.square().sum(-1, keepdim=True) / self.length_scale**2
        shrink = (1 + square).rsqrt()
        harmonics = solid_harmonics(vectors / self.length_scale * shrink, self.lmax)
        radial = self.radial(torch.cat([1 / shrink, shrink], dim=-1)).unflatten(-1, (self.lmax + 1, -1))
        edges = harmonics[..., None] * expand_degrees(radial) * real[..., None, None]
        return rearrange(edges, "b t k s c -> b t s (k c)")


class TransposedSequenceConvolution(nn.Module):
    """Each node emits K children: positions by an l=1 arrow, features by K linear maps; overlapping children average.

    Args:
        lmax: highest degree.
        in_channels, out_channels: width before and after.
        kernel: children K of each node.
        stride: step S between the first children of neighbouring nodes.
        length_scale: unit of the arrows, Å.
    """

    def __init__(
        self, lmax: int, in_channels: int, out_channels: int, kernel: int = 5, stride: int = 2, length_scale: float = 5.0
    ):
        super().__init__()
        _check(kernel, stride)
        self.kernel, self.stride, self.length_scale = kernel, stride, length_scale
        self.weight_logits = nn.Parameter(torch.zeros(kernel))
        self.linear = Linear([in_channels] * (lmax + 1), kernel * (out_channels + 1))

    def forward(self, cloud: Cloud, mask: Bool[Tensor, "batch n"]) -> Cloud:
        """`mask`: which of the n children are real, as it was before the convolution that this one undoes."""
        children = self.linear(split(cloud.features))
        children = rearrange(children, "b t s (k c) -> b t k s c", k=self.kernel)
        features, arrows = children[..., :-1], children[..., 1:4, -1]
        positions = cloud.positions[:, :, None] + self.length_scale * arrows
        weights = (self.weight_logits.softmax(0) + 1e-6) * cloud.mask[..., None]
        total = self._overlap_add(weights, mask.shape[1]).clamp(min=1e-6)
        weights = weights[..., None]
        positions = self._overlap_add(weights * positions, mask.shape[1]) / total[..., None]
        features = self._overlap_add(weights[..., None] * features, mask.shape[1]) / total[..., None, None]
        return Cloud(positions, features, mask)

    def _overlap_add(self, x: Tensor, num_nodes: int) -> Tensor:
        """[batch, t, kernel, ...] -> [batch, n, ...]: child k of node t adds to node t S + k."""
        folds = -(-self.kernel // self.stride)
        tail = (0, 0) * (x.dim() - 3)
        x = F.pad(x, (*tail, 0, folds * self.stride - self.kernel))
        x = x.unflatten(2, (folds, self.stride))
        shifted = [F.pad(x[:, :, m], (*tail, 0, 0, m, folds - 1 - m)) for m in range(folds)]
        total = torch.stack(shifted).sum(0).flatten(1, 2)
        left, _ = _padding(num_nodes, self.kernel, self.stride)
        return total[:, left : left + num_nodes]
