"""Splitting features by degree, and joining them again."""

from collections.abc import Iterable
from math import isqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def dim(lmax: int) -> int:
    """Components of all degrees 0..lmax."""
    return (lmax + 1) ** 2


def lmax_of(features: Float[Tensor, "*batch S C"]) -> int:
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
    return torch.cat(tuple(parts), dim=-2)


def degree_of_component(lmax: int) -> Int[Tensor, "S"]:
    """The degree that each of the (lmax + 1)^2 components belongs to."""
    return torch.cat([torch.full((2 * degree + 1,), degree) for degree in range(lmax + 1)])


def expand_degrees(per_degree: Float[Tensor, "*batch D C"]) -> Float[Tensor, "*batch S C"]:
    """Repeats one value for each degree over the 2l+1 components of that degree."""
    return per_degree[..., degree_of_component(per_degree.shape[-2] - 1).to(per_degree.device), :]


def pad_degrees(features: Float[Tensor, "*batch S C"], lmax: int) -> Float[Tensor, "*batch T C"]:
    """Features up to `lmax`: higher degrees are cut off, or filled with zeros."""
    return F.pad(features, (0, 0, 0, dim(lmax) - features.shape[-2]))
