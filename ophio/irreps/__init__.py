"""SO(3) irreps with channels last: the only code that knows the memory layout.

Features are tensors [..., S, C] with S = (lmax + 1)^2: the 2l+1 components of degree l = 0..lmax one after another, each
with C channels. Components follow the real spherical harmonics with l=1 in the order (x, y, z), as in e3nn, so an
l=1 feature is a vector. There is no parity: proteins are chiral.
"""

from ophio.irreps.clebsch_gordan import clebsch_gordan, wigner_matrix
from ophio.irreps.harmonics import solid_harmonics, symmetric_traceless
from ophio.irreps.layout import (
    components_first,
    components_last,
    degree_of_component,
    dim,
    expand_degrees,
    join,
    lmax_of,
    pad_degrees,
    scale_degrees,
    split,
)
from ophio.irreps.linear import Linear
from ophio.irreps.product import ChannelwiseProduct, ChannelwiseSquare

__all__ = [
    "ChannelwiseProduct",
    "ChannelwiseSquare",
    "Linear",
    "clebsch_gordan",
    "components_first",
    "components_last",
    "degree_of_component",
    "dim",
    "expand_degrees",
    "join",
    "lmax_of",
    "pad_degrees",
    "scale_degrees",
    "solid_harmonics",
    "split",
    "symmetric_traceless",
    "wigner_matrix",
]
