"""Equivariant layers: Cloud in, Cloud out (norm and gate work on features).

Self-interaction and the three convolutions are those of Ophiuchus (arXiv:2310.02508), but for what each says.
"""

from ophio.layers.gate import Gate
from ophio.layers.interaction import SelfInteraction
from ophio.layers.norm import EquivariantNorm
from ophio.layers.sequence import SequenceConvolution, TransposedSequenceConvolution
from ophio.layers.spatial import SpatialConvolution

__all__ = [
    "EquivariantNorm",
    "Gate",
    "SelfInteraction",
    "SequenceConvolution",
    "SpatialConvolution",
    "TransposedSequenceConvolution",
]
