"""The SO(3)-linear map: one matrix for each degree, a bias for the scalars."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ophio.irreps.layout import join


class Linear(nn.Module):
    """Maps channels within each degree. By Schur's lemma there is no other equivariant linear map.

    Args:
        in_channels: channels of each degree 0..lmax that comes in; degrees may differ in width.
        out_channels: channels of every degree that goes out.
        out_lmax: highest degree that goes out (default: all that come in).
        bias: whether scalars get a bias.
        gain: standard deviation of the output for inputs of unit variance, at initialisation.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        out_lmax: int | None = None,
        bias: bool = True,
        gain: float = 1.0,
    ):
        super().__init__()
        out_lmax = len(in_channels) - 1 if out_lmax is None else out_lmax
        if out_lmax >= len(in_channels):
            raise ValueError(f"cannot make degree {out_lmax} from degrees up to {len(in_channels) - 1} linearly")
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(width, out_channels) * gain * width**-0.5) for width in in_channels[: out_lmax + 1]
        )
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, parts: Sequence[Tensor | tuple[Tensor, ...]]) -> Float[Tensor, "*batch S D"]:
        """Takes the features split by degree (`irreps.split`), returns them joined.

        A degree may come as several tensors [*batch, 2l+1, _]: their channels count one after the other.
        """
        mapped = [_map(part, weight) for part, weight in zip(parts, self.weights, strict=False)]
        if self.bias is not None:
            mapped[0] = mapped[0] + self.bias
        return join(mapped)


def _map(part: Tensor | tuple[Tensor, ...], weight: Float[Tensor, "_ D"]) -> Float[Tensor, "*batch M D"]:
    if isinstance(part, Tensor):
        return part @ weight
    total, blocks = None, weight.split([piece.shape[-1] for piece in part])
    for piece, block in zip(part, blocks, strict=True):
        rows = piece.flatten(0, -2)
        total = rows @ block if total is None else torch.addmm(total, rows, block)
    return total.unflatten(0, part[0].shape[:-1])
