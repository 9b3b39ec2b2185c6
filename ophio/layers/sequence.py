"""Convolutions along the chain: strided (fewer nodes, wider) and transposed (more nodes, narrower).

Lengths: without stride a convolution keeps the nodes it gets (windows are centred). With stride S, window t covers
inputs t S .. t S + K - 1, and the last window may reach over the end: the paper's ladder 161 -> 53 -> 17 -> 5 -> 1 for
K = 5, S = 3, and any other length with masked nodes.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ophio.cloud import Cloud
from ophio.irreps import Linear, scale_degrees, solid_harmonics, split


def num_windows(num_nodes: int, kernel: int, stride: int) -> int:
    """Nodes that come out of a convolution over `num_nodes` nodes."""
    if stride == 1:
        return num_nodes
    return max(0, -(-(num_nodes - kernel) // stride)) + 1


def window_mask(mask: Bool[Tensor, "batch n"], kernel: int, stride: int) -> Bool[Tensor, "batch t"]:
    """A window is real if one of the inputs that no earlier window covers is real: padding adds no real window."""
    if stride == 1:
        return mask
    windows = _windows_of_mask(mask, kernel, stride)
    fresh = windows[..., kernel - stride :].any(-1)
    return torch.cat([windows[:, :1].any(-1), fresh[:, 1:]], dim=1)


def _windows_of_mask(mask: Bool[Tensor, "batch n"], kernel: int, stride: int) -> Bool[Tensor, "batch t K"]:
    """False beyond the ends."""
    num_nodes, left = mask.shape[1], overhang(kernel, stride)
    covered = (num_windows(num_nodes, kernel, stride) - 1) * stride + kernel
    return F.pad(mask, (left, covered - left - num_nodes)).unfold(1, kernel, stride)


def overhang(kernel: int, stride: int) -> int:
    """How far the first window reaches over the beginning."""
    return kernel // 2 if stride == 1 else 0


def _places(num_nodes: int, kernel: int, stride: int) -> Iterator[tuple[int, slice, slice]]:
    """For every place in a window: the windows that have a node there, and these nodes."""
    for place in range(kernel):
        offset = place - overhang(kernel, stride)
        first = max(0, -(offset // stride))
        last = min(num_windows(num_nodes, kernel, stride), (num_nodes - 1 - offset) // stride + 1)
        if first < last:
            start = first * stride + offset
            yield place, slice(first, last), slice(start, start + (last - first - 1) * stride + 1, stride)


class Windows(torch.autograd.Function):
    """Nodes [*batch, n, C] to windows [*batch, t, K, C] with weights [batch, t, K]: 0 where there is no node."""

    @staticmethod
    def forward(ctx, nodes: Tensor, weights: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(weights)
        ctx.num_nodes, ctx.stride = nodes.shape[-2], stride
        return _gather(nodes, weights, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _scatter(gradient, *ctx.saved_tensors, ctx.num_nodes, ctx.stride), None, None


class OverlapAdd(torch.autograd.Function):
    """The adjoint, windows to nodes: each gets the weighted sum of what windows have in its place."""

    @staticmethod
    def forward(ctx, windows: Tensor, weights: Tensor, num_nodes: int, stride: int) -> Tensor:
        ctx.save_for_backward(windows, weights)
        ctx.stride = stride
        return _scatter(windows, weights, num_nodes, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        windows, weights = ctx.saved_tensors
        to_weights = torch.zeros_like(weights)
        for place, of_windows, of_nodes in _places(gradient.shape[-2], weights.shape[-1], ctx.stride):
            products = windows[..., of_windows, place, :] * gradient[..., of_nodes, :]
            to_weights[:, of_windows, place] = products.sum(-1).sum_to_size(to_weights[:, of_windows, place].shape)
        return _gather(gradient, weights, ctx.stride), to_weights, None, None


def _gather(nodes: Tensor, weights: Tensor, stride: int) -> Tensor:
    num_windows, kernel = weights.shape[1:]
    dtype = torch.result_type(nodes, weights)
    windows = nodes.new_zeros(*nodes.shape[:-2], num_windows, kernel, nodes.shape[-1], dtype=dtype)
    for place, of_windows, of_nodes in _places(nodes.shape[-2], kernel, stride):
        weight = weights[:, of_windows, place, None]
        torch.mul(nodes[..., of_nodes, :], weight, out=windows[..., of_windows, place, :])
    return windows


def _scatter(windows: Tensor, weights: Tensor, num_nodes: int, stride: int) -> Tensor:
    dtype = torch.result_type(windows, weights)
    nodes = windows.new_zeros(*windows.shape[:-3], num_nodes, windows.shape[-1], dtype=dtype)
    for place, of_windows, of_nodes in _places(num_nodes, weights.shape[-1], stride):
        nodes[..., of_nodes, :].addcmul_(windows[..., of_windows, place, :], weights[:, of_windows, place, None])
    return nodes


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

    Raises ValueError for a stride outside 1..kernel, and without stride for an even kernel or widths that differ.
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
            raise ValueError(
                f"a convolution without stride is residual: {in_channels} channels cannot become {out_channels}"
            )
        self.lmax, self.kernel, self.stride, self.length_scale = lmax, kernel, stride, length_scale
        self.position_logits = nn.Parameter(torch.zeros(kernel)) if stride > 1 else None
        self.radial = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, (lmax + 1) * edge_channels))
        width = kernel * (in_channels + edge_channels)
        self.linear = Linear([width] * (lmax + 1), out_channels, gain=0.5 if stride == 1 else 1.0)

    def forward(self, cloud: Cloud, features: Float[Tensor, "batch n S C"] | None = None) -> Cloud:
        """`features`: what enters the convolution instead of the cloud's own (a normalised copy, say)."""
        features = cloud.features if features is None else features
        real = _windows_of_mask(cloud.mask, self.kernel, self.stride).to(features.dtype)
        neighbours = Windows.apply(cloud.positions, real, self.stride)
        positions = self._centres(cloud.positions, neighbours, real)
        edges = self._edges(neighbours - positions[:, :, None], real)
        inputs = Windows.apply(features.movedim(-2, 0), real, self.stride).flatten(-2).movedim(0, -2)
        out = self.linear(inputs, edges)
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
        harmonics = solid_harmonics(vectors / self.length_scale * shrink, self.lmax) * real[..., None]
        radial = self.radial(torch.cat([1 / shrink, shrink], dim=-1)).unflatten(-1, (self.lmax + 1, -1))
        edges = scale_degrees(split(harmonics[..., None]), radial)
        return edges.movedim(-2, 0).flatten(-2).movedim(0, -2)


class TransposedSequenceConvolution(nn.Module):
    """Each node emits K children: positions by an l=1 arrow, features by K linear maps; overlapping children average.

    Args:
        lmax: highest degree.
        in_channels, out_channels: width before and after.
        kernel: children K of each node.
        stride: step S between the first children of neighbouring nodes.
        length_scale: unit of the arrows, Å.

    Raises ValueError for a stride outside 1..kernel, and for an even kernel without stride.
    """

    def __init__(
        self,
        lmax: int,
        in_channels: int,
        out_channels: int,
        kernel: int = 5,
        stride: int = 2,
        length_scale: float = 5.0,
    ):
        super().__init__()
        _check(kernel, stride)
        self.kernel, self.stride, self.length_scale = kernel, stride, length_scale
        self.weight_logits = nn.Parameter(torch.zeros(kernel))
        self.linear = Linear([in_channels] * (lmax + 1), kernel * (out_channels + 1))

    def forward(self, cloud: Cloud, mask: Bool[Tensor, "batch n"]) -> Cloud:
        """`mask`: which of the n children are real, as it was before the convolution that this one undoes."""
        num_nodes = mask.shape[1]
        weights = (self.weight_logits.softmax(0) + 1e-6) * cloud.mask[..., None]
        total = OverlapAdd.apply(torch.ones_like(weights)[..., None], weights, num_nodes, self.stride)
        share = 1 / total.clamp(min=1e-6)  # weights of what meets in a node sum to 1
        weights = weights * Windows.apply(share, torch.ones_like(weights), self.stride)[..., 0]
        parents = cloud.positions[:, :, None].expand(*weights.shape, 3)
        positions = OverlapAdd.apply(parents, weights, num_nodes, self.stride)
        children = self.linear(cloud.features).movedim(-2, 0).unflatten(-1, (self.kernel, -1))
        averages = OverlapAdd.apply(children, weights, num_nodes, self.stride).movedim(0, -2)
        return Cloud(positions + self.length_scale * averages[..., 1:4, -1], averages[..., :-1], mask)
