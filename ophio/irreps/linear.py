"""The SO(3)-linear map: one matrix for each degree, a bias for the scalars."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ophio.irreps.layout import components_first, components_last, dim, join, lmax_of, split

BLOCK = 131_072  # numbers: half of the cache that a core has for itself
Input = Tensor | Sequence[Tensor]  # features: joined, or split by degree


class Linear(nn.Module):
    """Maps channels within each degree. By Schur's lemma there is no other equivariant linear map.

    Args:
        in_channels: channels of each degree 0..lmax that comes in; degrees may differ in width.
        out_channels: channels of every degree that goes out.
        out_lmax: highest degree that goes out (default: all that come in).
        bias: whether scalars get a bias.
        gain: standard deviation of the output for inputs of unit variance, at initialisation.

    Raises ValueError for an `out_lmax` above what comes in, and at a call with other channels than `in_channels`.
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

    def forward(self, *inputs: Input) -> Float[Tensor, "*batch S D"]:
        """Takes features, joined [*batch, S, _] or split by degree [*batch, 2l+1, _]; returns them joined.

        The channels of several inputs count one after the other.
        """
        weights, bias = [*self.weights], self.bias
        if torch.compiler.is_compiling():
            return _plain(inputs, weights, bias)
        held = [degrees for x in inputs for degrees in _degrees(x)]
        tensors = [tensor for x in inputs for tensor in ([x] if isinstance(x, Tensor) else x)]
        device = tensors[0].device.type
        if torch.is_autocast_enabled(device):
            lower = torch.get_autocast_dtype(device)
            tensors, weights = ([tensor.to(lower) for tensor in some] for some in (tensors, weights))
        if torch.is_grad_enabled():
            return _InPlace.apply(held, len(weights), bias, *weights, *tensors)
        out = _mapped(held, weights, bias, [components_first(x) for x in tensors])
        return components_last(out, tensors[0].shape[:-2])


def _degrees(x: Input) -> list[range]:
    """The degrees that each tensor of an input holds."""
    return [range(lmax_of(x) + 1)] if isinstance(x, Tensor) else [range(degree, degree + 1) for degree in range(len(x))]


def _plain(inputs: Sequence[Input], weights: Sequence[Tensor], bias: Tensor | None) -> Float[Tensor, "*batch S D"]:
    """The map as its definition says."""
    degrees = [split(x) if isinstance(x, Tensor) else x for x in inputs]
    parts = [torch.cat(pieces, dim=-1) @ weight for *pieces, weight in zip(*degrees, weights, strict=False)]
    return join(parts if bias is None else [parts[0] + bias, *parts[1:]])


def _mapped(
    held: list[range], weights: Sequence[Tensor], bias: Tensor | None, inputs: Sequence[Float[Tensor, "_ nodes _"]]
) -> Float[Tensor, "S nodes D"]:
    """The same by matrix products into one tensor."""
    out = inputs[0].new_empty(dim(len(weights) - 1), inputs[0].shape[1], weights[0].shape[1])
    for degree, weight in enumerate(weights):
        total = _rows(out, degree)
        for number, (rows, block) in enumerate(_terms(degree, held, inputs, weight)):
            for some, of_total in zip(_blocks(rows, block), _blocks(total, block), strict=True):
                of_total.addmm_(some, block, beta=float(number > 0))  # beta 0: what was there does not count
    if bias is not None:
        out[0] += bias
    return out


class _InPlace(torch.autograd.Function):
    """That with its gradients, which are found alike; nothing is copied that lies components first."""

    @staticmethod
    def forward(ctx, held: list[range], count: int, bias: Tensor | None, *tensors: Tensor) -> Tensor:
        weights, inputs = tensors[:count], tensors[count:]
        ctx.held, ctx.shapes = held, [x.shape for x in inputs]
        inputs = [components_first(x) for x in inputs]
        ctx.save_for_backward(*weights, *inputs)
        return components_last(_mapped(held, weights, bias, inputs), ctx.shapes[0][:-2])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.saved_tensors) - len(ctx.held)
        weights, inputs = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        gradient = components_first(gradient)
        to_weights = [torch.empty_like(weight) for weight in weights]
        to_inputs = [
            torch.empty_like(x) if degrees.stop <= count else torch.zeros_like(x)
            for x, degrees in zip(inputs, ctx.held, strict=True)
        ]
        for degree, (weight, to_weight) in enumerate(zip(weights, to_weights, strict=True)):
            of_degree = _rows(gradient, degree)
            terms, targets = _terms(degree, ctx.held, inputs, weight), _terms(degree, ctx.held, to_inputs, to_weight)
            for (rows, block), (to_rows, to_block) in zip(terms, targets, strict=True):
                for some, target in zip(_blocks(of_degree, block), _blocks(to_rows, block), strict=True):
                    torch.mm(some, block.T, out=target)
                torch.mm(rows.T, of_degree, out=to_block)
        to_inputs = [components_last(x, shape[:-2]) for x, shape in zip(to_inputs, ctx.shapes, strict=True)]
        to_bias = gradient[0].sum(0) if ctx.needs_input_grad[2] else None
        return None, None, to_bias, *to_weights, *to_inputs


def _terms(
    degree: int, held: list[range], inputs: Sequence[Tensor], weight: Float[Tensor, "_ D"]
) -> Iterator[tuple[Float[Tensor, "rows C"], Float[Tensor, "C D"]]]:
    """Of each input that has this degree: its rows, and those of the weight that they are multiplied with."""
    start = 0
    for degrees, x in zip(held, inputs, strict=True):
        if degree in degrees:
            yield _rows(x, degree, degrees.start), weight[start : (start := start + x.shape[-1])]
    if start != len(weight):
        raise ValueError(f"degree {degree} comes with {start} channels, not {len(weight)}")


def _rows(features: Float[Tensor, "S nodes C"], degree: int, lowest: int = 0) -> Float[Tensor, "rows C"]:
    """The components of one degree; the first one of `features` belongs to degree `lowest`."""
    offset = dim(lowest - 1)
    return features[dim(degree - 1) - offset : dim(degree) - offset].flatten(0, 1)


def _blocks(rows: Float[Tensor, "rows _"], block: Float[Tensor, "C D"]) -> Sequence[Tensor]:
    """Rows to multiply at a time: what a product of thin matrices writes should stay in the cache of a CPU."""
    step = max(512, BLOCK // max(block.shape))
    return rows.split(step) if len(rows) > step and rows.device.type == "cpu" else [rows]
