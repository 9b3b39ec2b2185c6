"""The Cloud: a sequence of nodes with positions, irrep features and a mask. What every layer takes and gives."""

from dataclasses import dataclass, replace

from jaxtyping import Bool, Float
from torch import Tensor

from ophio import irreps


@dataclass(frozen=True)
class Cloud:
    """n nodes along a chain, or a batch of such sequences. Masked nodes are padding: their values mean nothing.

    Under a rotation, positions and the features of degree 1 and above turn with it; degree 0 does not change.
    """

    positions: Float[Tensor, "*batch n 3"]  # Å
    features: Float[Tensor, "*batch n S C"]  # degrees 0..lmax, channels last: see ophio.irreps
    mask: Bool[Tensor, "*batch n"]

    @property
    def num_nodes(self) -> int:
        return self.mask.shape[-1]

    @property
    def lmax(self) -> int:
        """Highest degree of the features."""
        return irreps.lmax_of(self.features)

    @property
    def channels(self) -> int:
        return self.features.shape[-1]

    @property
    def numbers_per_node(self) -> int:
        """Real numbers that a node stores: its position and its features."""
        return 3 + self.features.shape[-2] * self.features.shape[-1]

    def replace(self, **changes) -> "Cloud":
        """The same with other `positions`, `features` or `mask`. Raises TypeError for another name."""
        return replace(self, **changes)

    def __add__(self, other: "Cloud") -> "Cloud":
        """Positions and features added; the mask is this cloud's."""
        return Cloud(self.positions + other.positions, self.features + other.features, self.mask)

    def __sub__(self, other: "Cloud") -> "Cloud":
        return Cloud(self.positions - other.positions, self.features - other.features, self.mask)

    def __mul__(self, factor: float | Float[Tensor, "*batch"]) -> "Cloud":
        """Positions and features times one number, or one number for each cloud of a batch."""
        if isinstance(factor, Tensor) and factor.dim():
            return Cloud(
                self.positions * factor[..., None, None], self.features * factor[..., None, None, None], self.mask
            )
        return Cloud(self.positions * factor, self.features * factor, self.mask)

    def center(self) -> "Cloud":
        """The mean position of the real nodes moves to the origin; masked nodes become 0."""
        real = self.mask[..., None].to(self.positions.dtype)
        mean = (self.positions * real).sum(-2, keepdim=True) / real.sum(-2, keepdim=True).clamp(min=1)
        return Cloud((self.positions - mean) * real, self.features * real[..., None], self.mask)

    def to(self, *args, **kwargs) -> "Cloud":
        """Device or floating dtype, as `Tensor.to`; the mask stays boolean."""
        positions = self.positions.to(*args, **kwargs)
        return Cloud(positions, self.features.to(*args, **kwargs), self.mask.to(positions.device))
