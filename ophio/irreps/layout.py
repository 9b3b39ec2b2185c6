"""Splitting features by degree, joining them again, and the order of their numbers in memory."""

from collections.abc import Iterable, Sequence
from math import isqrt, prod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


def dim(lmax: int) -> int:
    """Components of all degrees 0..lmax."""
    return (lmax + 1) ** 2


def lmax_of(features: Float[Tensor, "*batch S C"]) -> int:
    """The highest degree. Raises ValueError where S is no square."""
    components = features.shape[-2]
    root = isqrt(components)
    if root * root != components:
        raise ValueError(f"features have {components} components, not (lmax + 1)^2; their shape is {[*features.shape]}")
    return root - 1


def split(features: Float[Tensor, "*batch S C"]) -> tuple[Tensor, ...]:
    """One tensor [*batch, 2l+1, C] for each degree. (One `split`: its backward is one concatenation.)"""
    return features.split([2 * degree + 1 for degree in range(lmax_of(features) + 1)], dim=-2)


def join(parts: Iterable[Float[Tensor, "*batch _ C"]]) -> Float[Tensor, "*batch S C"]:
    """Inverse of `split`."""
    return torch.cat([part.movedim(-2, 0) for part in parts]).movedim(0, -2)


def components_first(features: Float[Tensor, "*batch S C"]) -> Float[Tensor, "S nodes C"]:
    """All batch dimensions in one, each component a contiguous matrix.

    A view where memory is in this order already, as it is of whatever the operations of this package return.
    """
    *batch, components, channels = features.shape
    return features.movedim(-2, 0).reshape(components, prod(batch), channels).contiguous()


def components_last(features: Float[Tensor, "S nodes C"], batch: Sequence[int]) -> Float[Tensor, "*batch S C"]:
    """Inverse of `components_first`, always a view."""
    components, _, channels = features.shape
    return features.view(components, *batch, channels).movedim(0, -2)


def degree_of_component(lmax: int) -> Int[Tensor, "S"]:
    """The degree that each of the (lmax + 1)^2 components belongs to."""
    return torch.cat([torch.full((2 * degree + 1,), degree) for degree in range(lmax + 1)])


def expand_degrees(per_degree: Float[Tensor, "*batch D C"]) -> Float[Tensor, "*batch S C"]:
    """Repeats one value for each degree over the 2l+1 components of that degree."""
    values = per_degree.split(1, dim=-2)
    return join(value.expand(*value.shape[:-2], 2 * degree + 1, -1) for degree, value in enumerate(values))


def pad_degrees(features: Float[Tensor, "*batch S C"], lmax: int) -> Float[Tensor, "*batch T C"]:
    """Features up to `lmax`: higher degrees are cut off, or filled with zeros."""
    return F.pad(features, (0, 0, 0, dim(lmax) - features.shape[-2]))


def scale_degrees(
    parts: Sequence[Float[Tensor, "*#batch _ #C"]], scale: Float[Tensor, "*#batch D #C"]
) -> Float[Tensor, "*batch S C"]:
    """Every degree (`split`) times its own factors, joined."""
    if torch.compiler.is_compiling():
        return join(part * factor for part, factor in zip(parts, scale.split(1, dim=-2), strict=True))
    tensors = [x.movedim(-2, 0) for x in (scale, *parts)]
    return (_ScaleDegrees.apply(*tensors) if torch.is_grad_enabled() else _scaled(*tensors)).movedim(0, -2)


def _scaled(scale: Float[Tensor, "D *#batch #C"], *parts: Float[Tensor, "_ *#batch #C"]) -> Float[Tensor, "S *batch C"]:
    """Degrees and components come first; every product goes where it belongs."""
    shape = torch.broadcast_tensors(parts[0][0], scale[0])[0].shape  # broadcast_shapes imports sympy
    out = torch.empty(dim(len(parts) - 1), *shape, dtype=torch.result_type(parts[0], scale), device=scale.device)
    for degree, (part, factor) in enumerate(zip(parts, scale, strict=True)):
        torch.mul(part, factor, out=out[dim(degree - 1) : dim(degree)])
    return out


class _ScaleDegrees(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scale: Tensor, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(scale, *parts)
        return _scaled(scale, *parts)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        scale, *parts = ctx.saved_tensors
        gradients = gradient.split([len(part) for part in parts])
        to_parts = [(g * factor).sum_to_size(x.shape) for g, factor, x in zip(gradients, scale, parts, strict=True)]
        to_scale = [(g * x).sum(0).sum_to_size(scale.shape[1:]) for g, x in zip(gradients, parts, strict=True)]
        return torch.stack(to_scale), *to_parts
