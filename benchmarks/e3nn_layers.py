"""ophio's layers built with e3nn, weights taken from ophio's: what `equivariant_layers.py` compares with.

Features are e3nn's: [..., sum over degrees of channels * (2l + 1)], components last. Even parity throughout.
"""

from collections.abc import Sequence

import e3nn
import torch
import torch.nn.functional as F
from e3nn import o3
from torch import Tensor, nn

from ophio.autoencoder import Autoencoder
from ophio.cloud import Cloud
from ophio.irreps import ChannelwiseProduct, Linear, dim, split
from ophio.layers import SelfInteraction, SequenceConvolution, TransposedSequenceConvolution


def irreps_of(lmax: int, channels: int) -> o3.Irreps:
    return o3.Irreps([(channels, (degree, 1)) for degree in range(lmax + 1)])


def to_e3nn(features: Tensor) -> Tensor:
    """[..., S, C] -> [..., C * S], degree by degree."""
    return torch.cat([part.mT.flatten(-2) for part in split(features)], dim=-1)


def from_e3nn(flat: Tensor, lmax: int) -> Tensor:
    """Inverse of `to_e3nn`."""
    channels = flat.shape[-1] // dim(lmax)
    return torch.cat(product_parts(flat, [1] * (lmax + 1), channels), dim=-2)


def product_parts(flat: Tensor, counts: list[int], channels: int) -> list[Tensor]:
    """e3nn's degrees of `counts[l]` paths each -> [..., 2l+1, counts[l] * channels]."""
    sizes = [(2 * degree + 1) * count * channels for degree, count in enumerate(counts)]
    parts = flat.split(sizes, dim=-1)
    return [part.unflatten(-1, (-1, 2 * degree + 1)).mT for degree, part in enumerate(parts)]


def channelwise_product(lmax: int, channels: int, script: bool = True) -> o3.TensorProduct:
    """The paths of `ChannelwiseProduct` in its order. `script`: generated code runs as TorchScript, e3nn's default."""
    degrees, irreps = range(lmax + 1), irreps_of(lmax, channels)
    paths = [(a, b, c) for c in degrees for a in degrees for b in degrees if abs(a - b) <= c <= a + b]
    out = o3.Irreps([(channels, (c, 1)) for _, _, c in paths])
    instructions = [(a, b, index, "uuu", False) for index, (a, b, _) in enumerate(paths)]
    before = e3nn.get_optimization_defaults()
    e3nn.set_optimization_defaults(jit_script_fx=script)
    product = o3.TensorProduct(irreps, irreps, out, instructions)
    e3nn.set_optimization_defaults(**before)
    return product


def copy_linear(ours: Linear, theirs: o3.Linear) -> o3.Linear:
    """Gives e3nn's map the weights of ophio's. Several inputs of a degree count one after the other."""
    rows = [0] * len(ours.weights)
    with torch.no_grad():
        for instruction, view in zip(theirs.instructions, theirs.weight_views(), strict=True):
            degree = theirs.irreps_in[instruction.i_in].ir.l
            block = ours.weights[degree][rows[degree] : rows[degree] + view.shape[0]]
            rows[degree] += view.shape[0]
            view.copy_(block / instruction.path_weight)
    return theirs


class E3nnLinear(nn.Module):
    """ophio's `Linear` by e3nn: takes features joined or split by degree, returns them joined, in ophio's layout."""

    def __init__(self, ours: Linear):
        super().__init__()
        widths = [weight.shape[0] for weight in ours.weights]
        self.lmax = len(widths) - 1
        irreps = o3.Irreps([(width, (degree, 1)) for degree, width in enumerate(widths)])
        self.linear = copy_linear(ours, o3.Linear(irreps, irreps_of(self.lmax, ours.weights[0].shape[1])))
        self.bias = ours.bias

    def forward(self, *inputs: Tensor | Sequence[Tensor]) -> Tensor:
        degrees = zip(*(split(x) if isinstance(x, Tensor) else x for x in inputs), strict=True)
        parts = [torch.cat(pieces, dim=-1) for pieces in degrees]
        flat = torch.cat([part.mT.flatten(-2) for part in parts[: self.lmax + 1]], dim=-1)
        scalars, *rest = product_parts(self.linear(flat), [1] * (self.lmax + 1), self.linear.irreps_out[0].mul)
        return torch.cat([scalars if self.bias is None else scalars + self.bias, *rest], dim=-2)


class E3nnSelfInteraction(nn.Module):
    def __init__(self, ours: SelfInteraction):
        super().__init__()
        lmax, self.channels, hidden = len(ours.norm.scale) - 1, ours.norm.scale.shape[1], ours.hidden
        self.irreps, self.norm = irreps_of(lmax, self.channels), ours.norm
        factor = irreps_of(lmax, hidden)
        self.left, self.right = (
            copy_linear(_columns(ours.factors, piece), o3.Linear(self.irreps, factor))
            for piece in (slice(0, hidden), slice(hidden, None))
        )
        self.factor_bias = ours.factors.bias
        self.product = channelwise_product(lmax, hidden)
        self.signs = path_signs(lmax)
        self.mix = copy_linear(self._signed(ours.mix), o3.Linear(self.irreps + self.product.irreps_out, self.irreps))
        self.mlp, self.biases = ours.gate.mlp, nn.ParameterList([ours.mix.bias, ours.out.bias])
        self.gates = o3.ElementwiseTensorProduct(self.irreps, o3.Irreps([(self.channels * (lmax + 1), (0, 1))]))
        self.out = copy_linear(ours.out, o3.Linear(self.irreps, self.irreps))

    def _signed(self, ours: Linear) -> Linear:
        """`mix` for products with e3nn's signs."""
        signed = _columns(ours, slice(None))
        with torch.no_grad():
            for weight, signs in zip(signed.weights, self.signs, strict=True):
                weight[self.channels :] *= signs.repeat_interleave(len(weight[self.channels :]) // len(signs))[:, None]
        return signed

    def forward(self, features: Tensor) -> Tensor:
        normed = self._norm(features)
        hidden = self.factor_bias.shape[0] // 2
        left = self._shift(self.left(normed), self.factor_bias[:hidden])
        right = self._shift(self.right(normed), self.factor_bias[hidden:])
        mixed = self._shift(self.mix(torch.cat([normed, self.product(left, right)], dim=-1)), self.biases[0])
        gated = self.gates(mixed, 2 * self.mlp(mixed[..., : self.channels]))
        return features + self._shift(self.out(gated), self.biases[1])

    def _shift(self, x: Tensor, bias: Tensor) -> Tensor:
        return torch.cat([x[..., : len(bias)] + bias, x[..., len(bias) :]], dim=-1)

    def _norm(self, features: Tensor) -> Tensor:
        out = []
        for (mul, ir), place in zip(self.irreps, self.irreps.slices(), strict=True):
            part, scale = features[..., place].unflatten(-1, (mul, ir.dim)), self.norm.scale[ir.l][:, None]
            if ir.l == 0:
                normed = F.layer_norm(part.squeeze(-1), (mul,), eps=self.norm.eps)[..., None]
                out.append((normed * scale + self.norm.shift[:, None]).flatten(-2))
            else:
                normed = part * (part.square().mean((-2, -1), keepdim=True) + self.norm.eps).rsqrt()
                out.append((normed * scale).flatten(-2))
        return torch.cat(out, dim=-1)


class E3nnSequenceConvolution(nn.Module):
    """The residual convolution (stride 1, no masked nodes); one e3nn map of all offsets' features and edges."""

    def __init__(self, ours: SequenceConvolution, channels: int):
        super().__init__()
        self.kernel, self.lmax, self.scale, self.radial = ours.kernel, ours.lmax, ours.length_scale, ours.radial
        self.edge_channels = ours.radial[-1].out_features // (ours.lmax + 1)
        out, edge = irreps_of(ours.lmax, channels), irreps_of(ours.lmax, self.edge_channels)
        self.linear = copy_linear(ours.linear, o3.Linear(self.kernel * out + self.kernel * edge, out))
        self.bias = ours.linear.bias

    def forward(self, positions: Tensor, features: Tensor) -> Tensor:
        half = self.kernel // 2
        padded, places = (F.pad(x, (0, 0, half, half)).unfold(1, self.kernel, 1).mT for x in (features, positions))
        real = F.pad(torch.ones_like(positions[..., 0]), (half, half)).unfold(1, self.kernel, 1)
        edges = self._edges(places - positions[:, :, None], real)
        out = self.linear(torch.cat([padded.flatten(-2), edges.flatten(-2)], dim=-1))
        return features + torch.cat([out[..., : len(self.bias)] + self.bias, out[..., len(self.bias) :]], dim=-1)

    def _edges(self, vectors: Tensor, real: Tensor) -> Tensor:
        shrink = (1 + vectors.square().sum(-1, keepdim=True) / self.scale**2).rsqrt()
        degrees = list(range(self.lmax + 1))
        harmonics = o3.spherical_harmonics(degrees, vectors / self.scale * shrink, False, "component") * real[..., None]
        radial = self.radial(torch.cat([1 / shrink, shrink], dim=-1)).unflatten(-1, (self.lmax + 1, -1))
        parts = harmonics.split([2 * degree + 1 for degree in degrees], dim=-1)
        return torch.cat(
            [(radial[..., k, :, None] * part[..., None, :]).flatten(-2) for k, part in enumerate(parts)], -1
        )


class _OnCloud(nn.Module):
    """e3nn's self-interaction where ophio has its own."""

    def __init__(self, ours: SelfInteraction):
        super().__init__()
        self.layer, self.lmax = E3nnSelfInteraction(ours), len(ours.norm.scale) - 1

    def forward(self, cloud: Cloud) -> Cloud:
        return cloud.replace(features=from_e3nn(self.layer(to_e3nn(cloud.features)), self.lmax))


def swap_core(model: Autoencoder) -> Autoencoder:
    """The same model with e3nn's products and linear maps in its layers."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, SelfInteraction):
                setattr(module, name, _OnCloud(child))
            elif isinstance(child, (SequenceConvolution, TransposedSequenceConvolution)):
                child.linear = E3nnLinear(child.linear)
    return model


def path_signs(lmax: int) -> list[Tensor]:
    """For each degree and path, the sign of e3nn's coupling tensor against ophio's."""
    ours, theirs = ChannelwiseProduct(lmax), channelwise_product(lmax, 1)
    left, right = (torch.randn(8, dim(lmax), 1) for _ in range(2))
    with torch.no_grad():
        other = product_parts(theirs(to_e3nn(left), to_e3nn(right)), ours.paths_per_degree, 1)
        return [(x * y).sum((0, 1)).sign() for x, y in zip(ours(left, right), other, strict=True)]


def _columns(ours: Linear, piece: slice) -> Linear:
    """Some of the outputs of a map."""
    weights = [weight.detach()[:, piece].clone() for weight in ours.weights]
    part = Linear([len(weight) for weight in weights], weights[0].shape[1], bias=False)
    for own, weight in zip(part.weights, weights, strict=True):
        own.data = weight
    return part
