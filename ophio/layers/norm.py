"""Equivariant layer norm."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ophio.irreps import components_first, components_last, dim, join, lmax_of, split


class EquivariantNorm(nn.Module):
    """LayerNorm on the scalars; degrees l > 0 divided by the RMS over their components and channels.

    Args:
        lmax: highest degree.
        channels: width.
        affine: learn one scale for each degree and channel, and a shift for the scalars.
        eps: added to the variance; keeps all-zero (masked) nodes finite.
    """

    def __init__(self, lmax: int, channels: int, affine: bool = True, eps: float = 1e-4):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(lmax + 1, channels)) if affine else None
        self.shift = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, features: Float[Tensor, "*batch S C"]) -> Float[Tensor, "*batch S C"]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return self._in_place(features)
        scalars, *rest = split(features)
        parts = [F.layer_norm(scalars, scalars.shape[-1:], eps=self.eps)]
        parts += [part * (part.square().mean((-2, -1), keepdim=True) + self.eps).rsqrt() for part in rest]
        if self.scale is not None:
            parts = [part * scale for part, scale in zip(parts, self.scale, strict=True)]
            parts[0] = parts[0] + self.shift
        return join(parts)

    def _in_place(self, features: Float[Tensor, "*batch S C"]) -> Float[Tensor, "*batch S C"]:
        """The same, with a backward that goes over the features as rarely as it can."""
        *batch, _, channels = features.shape
        degrees = lmax_of(features) + 1
        scale = features.new_ones(degrees, channels) if self.scale is None else self.scale
        shift = features.new_zeros(channels) if self.shift is None else self.shift
        features = components_first(features).to(scale.dtype)  # under autocast too
        return components_last(_Normalise.apply(features, scale, shift, self.eps), batch)


class _Normalise(torch.autograd.Function):
    """y = (x - mean of scalars) / RMS of its degree, out = y scale + shift.

    With g the gradient of y, that of x is (g - y <g y>) / RMS, and for scalars less its mean (Ba et al. 2016,
    arXiv:1607.06450).
    """

    @staticmethod
    def forward(ctx, features: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        normed, out, inverse = torch.empty_like(features), torch.empty_like(features), []
        for degree, part in enumerate(_parts(features)):
            x = features[part] if degree else features[part] - features[part].mean(-1, keepdim=True)
            inverse.append((x.square().mean((0, -1))[:, None] + eps).rsqrt())
            torch.mul(x, inverse[degree], out=normed[part])
            torch.mul(normed[part], scale[degree], out=out[part])
        out[0] += shift
        ctx.save_for_backward(normed, scale, *inverse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        normed, scale, *inverse = ctx.saved_tensors
        to_features, to_scale = torch.empty_like(normed), torch.empty_like(scale)
        for degree, part in enumerate(_parts(normed)):
            y, g = normed[part], gradient[part] * scale[degree]
            product = gradient[part] * y
            to_scale[degree] = product.sum((0, 1))
            mean = (product @ scale[degree]).mean(0)[:, None] / len(scale[degree])
            g = g.addcmul_(y, mean, value=-1)
            g = g if degree else g.sub_(g.mean(-1, keepdim=True))
            torch.mul(g, inverse[degree], out=to_features[part])
        return to_features, to_scale, gradient[0].sum(0), None


def _parts(features: Float[Tensor, "S nodes C"]) -> Iterator[slice]:
    """The components of each degree."""
    return (slice(dim(degree - 1), dim(degree)) for degree in range(lmax_of(features.movedim(0, -2)) + 1))
