"""Channel-wise tensor products: channel c of one input couples with channel c of the other, through every path.

Each non-zero Clebsch-Gordan entry is one multiply-add over contiguous channels, written out from a table made at
construction. Run eagerly, these go over blocks of nodes that fit the cache, in place, and only the two inputs are kept
for the backward pass; under `torch.compile` they are plain operations, which it fuses to one loop.
"""

from collections.abc import Iterator
from functools import reduce
from operator import add

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ophio.irreps.clebsch_gordan import clebsch_gordan
from ophio.irreps.layout import components_last, dim

Term = tuple[int, int, float]  # component of the left input, of the right input, coefficient
Table = list[list[list[list[Term]]]]  # [degree][path][component] -> terms
BLOCK = 65_536  # numbers of one component that the CPU handles at a time: eighteen components stay in its cache


def _entries(left: int, right: int, out: int, square: bool) -> list[list[Term]]:
    """For every component of `out`, the terms that sum to it. Second moment 1 for inputs of unit variance."""
    tensor = clebsch_gordan(left, right, out)
    left_offset, right_offset = dim(left - 1), dim(right - 1)
    rows: list[dict[tuple[int, int], float]] = [{} for _ in range(2 * out + 1)]
    for i, j, k in tensor.nonzero().tolist():
        a, b = left_offset + i, right_offset + j
        key = (min(a, b), max(a, b)) if square else (a, b)
        rows[k][key] = rows[k].get(key, 0.0) + float(tensor[i, j, k])
    # x_a x_b has second moment 1; of one input with itself x_a^2 has 3, and the mean of a sum of squares counts too
    diagonal = [[c for (a, b), c in row.items() if square and a == b] for row in rows]
    moments = [sum(c * c for c in row.values()) for row in rows]
    moments = [m + sum(c * c for c in d) + sum(d) ** 2 for m, d in zip(moments, diagonal, strict=True)]
    scale = (sum(moments) / len(moments)) ** -0.5
    return [[(a, b, scale * c) for (a, b), c in row.items() if abs(c) > 1e-10] for row in rows]


class _Product(nn.Module):
    def __init__(self, lmax: int, paths: list[tuple[int, int, int]], square: bool):
        super().__init__()
        self.table: Table = [
            [_entries(*path, square) for path in paths if path[2] == degree] for degree in range(lmax + 1)
        ]
        self.paths_per_degree = [len(of_degree) for of_degree in self.table]

    def _contract(self, left: Tensor, right: Tensor) -> list[Tensor]:
        if torch.compiler.is_compiling():
            return _plain(left, right, self.table)
        batch = left.shape[:-2]
        left, right = (x.movedim(-2, 0).flatten(1, -2) for x in (left, right))
        return [components_last(part, batch) for part in _InBlocks.apply(left, right, self.table)]


def _plain(left: Tensor, right: Tensor, table: Table) -> list[Tensor]:
    """The product as its definition says."""
    a, b = left.unbind(-2), right.unbind(-2)

    def component(terms: list[Term]) -> Tensor:
        return reduce(add, (coefficient * (a[i] * b[j]) for i, j, coefficient in terms))

    def degree_part(of_degree: list[list[list[Term]]]) -> Tensor:
        by_component = zip(*of_degree, strict=True)
        return torch.stack([torch.cat([component(terms) for terms in row], dim=-1) for row in by_component], dim=-2)

    return [degree_part(of_degree) for of_degree in table]


class _InBlocks(torch.autograd.Function):
    """The same without intermediate tensors, forward and backward: a block of nodes at a time, components first."""

    @staticmethod
    def forward(ctx, left: Tensor, right: Tensor, table: Table) -> tuple[Tensor, ...]:
        ctx.save_for_backward(left, right)
        ctx.table = table
        _, nodes, channels = left.shape
        out = [left.new_empty(len(paths[0]), nodes, len(paths), channels) for paths in table]
        for block in _blocks(left):
            a, b = _matrices(left, block), _matrices(right, block)
            total = torch.empty_like(a[0])
            for part, path, component, terms in _walk(table):
                (i, j, scale), *others = terms
                torch.mul(a[i], b[j], out=total)
                for i, j, coefficient in others:
                    total.addcmul_(a[i], b[j], value=coefficient / scale)
                torch.mul(total, scale, out=out[part][component, block, path])
        return tuple(part.flatten(-2) for part in out)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        left, right = ctx.saved_tensors
        by_path = [g.unflatten(-1, (-1, left.shape[-1])) for g in gradients]
        to_left, to_right = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (left, right))
        for block in _blocks(left):
            a, b = _matrices(left, block), _matrices(right, block)
            of_a, of_b = to_left[:, block].unbind(0), to_right[:, block].unbind(0)
            for part, path, component, terms in _walk(ctx.table):
                gradient = by_path[part][component, block, path].contiguous()
                for i, j, coefficient in terms:
                    of_a[i].addcmul_(gradient, b[j], value=coefficient)
                    of_b[j].addcmul_(gradient, a[i], value=coefficient)
        return to_left, to_right, None


def _walk(table: Table) -> Iterator[tuple[int, int, int, list[Term]]]:
    """(degree, path, component, its terms)"""
    for degree, paths in enumerate(table):
        for path, components in enumerate(paths):
            for component, terms in enumerate(components):
                yield degree, path, component, terms


def _blocks(features: Float[Tensor, "S nodes C"]) -> Iterator[slice]:
    _, nodes, channels = features.shape
    step = max(1, BLOCK // channels) if features.device.type == "cpu" else max(1, nodes)
    return (slice(start, start + step) for start in range(0, nodes, step))


def _matrices(features: Float[Tensor, "S nodes C"], block: slice) -> tuple[Tensor, ...]:
    """The components of some nodes, each contiguous."""
    return features[:, block].contiguous().unbind(0)


class ChannelwiseProduct(_Product):
    """All paths l1 x l2 -> l3 with degrees up to `lmax` (15 paths at lmax 2, 34 at lmax 3).

    The product of two different inputs contains cross products, hence sees chirality; a square does not.
    """

    def __init__(self, lmax: int):
        degrees = range(lmax + 1)
        paths = [(a, b, c) for a in degrees for b in degrees for c in degrees if abs(a - b) <= c <= a + b]
        super().__init__(lmax, paths, square=False)

    def forward(self, left: Float[Tensor, "*batch S C"], right: Float[Tensor, "*batch S C"]) -> list[Tensor]:
        """One tensor [*batch, 2l+1, paths_per_degree[l] * C] for each degree l."""
        return self._contract(left, right)


class ChannelwiseSquare(_Product):
    """The product of one input with itself: the symmetric paths alone (9 at lmax 2, 18 at lmax 3)."""

    def __init__(self, lmax: int):
        degrees = range(lmax + 1)
        paths = [
            (a, b, c)
            for a in degrees
            for b in range(a, lmax + 1)
            for c in degrees
            if b - a <= c <= a + b and (a != b or c % 2 == 0)
        ]
        super().__init__(lmax, paths, square=True)

    def forward(self, features: Float[Tensor, "*batch S C"]) -> list[Tensor]:
        """One tensor [*batch, 2l+1, paths_per_degree[l] * C] for each degree l."""
        return self._contract(features, features)
