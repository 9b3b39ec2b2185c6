"""Channel-wise tensor products: channel c of one input couples with channel c of the other, through every path.

Each non-zero Clebsch-Gordan entry is one multiply-add over contiguous channels, written out from a table made at
construction. Run eagerly this needs no outer-product buffer; `torch.compile` fuses it to one loop.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ophio.irreps.clebsch_gordan import clebsch_gordan
from ophio.irreps.layout import dim

Term = tuple[int, int, float]  # component of the left input, of the right input, coefficient


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
        self.table = [
            [_entries(*path, square) for path in paths if path[2] == degree] for degree in range(lmax + 1)
        ]  # [degree][path][component] -> terms
        self.paths_per_degree = [len(of_degree) for of_degree in self.table]

    def _contract(self, left: Tensor, right: Tensor) -> list[Tensor]:
        a, b = left.unbind(-2), right.unbind(-2)
        products: dict[tuple[int, int], Tensor] = {}

        def component(terms: list[Term]) -> Tensor:
            total: Tensor | None = None
            for i, j, coefficient in terms:
                if (i, j) not in products:
                    products[i, j] = a[i] * b[j]
                term = products[i, j]
                total = term * coefficient if total is None else torch.add(total, term, alpha=coefficient)
            return total

        def degree_part(of_degree: list[list[list[Term]]]) -> Tensor:
            by_component = zip(*of_degree, strict=True)
            rows = [torch.cat([component(terms) for terms in row], dim=-1) for row in by_component]
            return torch.stack(rows, dim=-2)

        return [degree_part(of_degree) for of_degree in self.table]


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
