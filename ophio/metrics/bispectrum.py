"""Maximum mean discrepancy (MMD) of the surroundings of residues: do two sets of structures look alike close up?

What surrounds a residue is the density of the other CA atoms within 10 Å, projected on spherical harmonics up to
degree 4 and three radial functions. Sums of products of three of its coefficients that rotations leave alone are the
bispectrum (Kakarala 1992; for atoms Bartók, Kondor & Csányi 2013, Phys. Rev. B 87:184115). Those whose degrees add up to
an odd number change sign in a mirror.

MMD (Gretton et al. 2012, J. Mach. Learn. Res. 13:723) compares the distributions of two sets of such descriptors. Its
terms within a set leave out pairs of residues of one chain. Residues of a chain resemble each other, and chains are what
was sampled: that makes the estimate unbiased, and negative at times.
"""

from collections.abc import Sequence
from functools import cache
from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from ophio.errors import UserError
from ophio.geometry import pairwise_vectors, safe_norm
from ophio.irreps import clebsch_gordan, solid_harmonics, split
from ophio.metrics.alignment import check_chains, pad_chains

LMAX = 4
CENTRES = (4.0, 6.0, 8.0)  # Å, of the radial functions
WIDTH = 2.0  # Å, from the centre of a radial function to where it ends
SCALES = (0.5, 1.0, 2.0)  # times the median distance: the widths of the Gaussian kernels that are averaged
CHAINS = 1024  # of each set
RESIDUES = 4096  # of each set
MEDIAN_OF = 1024  # residues between which the median distance is taken
BLOCK = 1024  # rows of the kernel held at once
BATCH = 8  # chains projected at once


class Discrepancy(NamedTuple):
    """Squared MMD of two sets of chains, and what to read it against."""

    squared_mmd: float  # unbiased: 0 on average where both sets come from one distribution
    low: float  # 95 % interval over chains drawn again from both sets
    high: float
    floor: float  # 95 % quantile between as many references as there are samples (at most half) and the others
    p_value: float  # share of random exchanges of chains between the sets that look at least as different


@torch.no_grad()
def bispectrum_mmd(
    samples: Sequence[Float[Tensor, "_ 3"]],
    reference: Sequence[Float[Tensor, "_ 3"]],
    residues: int = RESIDUES,
    rounds: int = 1000,
    seed: int = 0,
) -> Discrepancy:
    """Discrepancy of the surroundings of residues in two sets of CA traces (Å).

    The ruler is made from the reference alone: descriptors in units of their spread there, and the mean of three
    Gaussian kernels, 0.5, 1 and 2 times as wide as the median distance there. At most 1,024 chains of each set count,
    drawn with `seed`, and of each chain equally many residues (or all it has), about `residues` in the larger set.
    `rounds` are those of the interval, the floor and the p-value; the floor is NaN for fewer than four references.

    Raises UserError for fewer than two chains in a set, or unfit ones (see `alignment.check_chains`).
    """
    for chains, name in ((samples, "sample"), (reference, "reference")):
        check_chains(chains, name)
        if len(chains) < 2:
            raise UserError(f"{len(chains)} {name} chains: the discrepancy needs at least two in each set")
    generator = torch.Generator().manual_seed(seed)
    kept = [_some(len(chains), CHAINS, generator) for chains in (samples, reference)]
    each = max(1, residues // max(map(len, kept)))
    sets = [[chains[i] for i in chosen] for chains, chosen in zip((samples, reference), kept, strict=True)]
    x, y = (_descriptors(chains, each, generator) for chains in sets)
    return _discrepancy(_kernel_sums(x, y), len(x.length), rounds, generator)


@torch.no_grad()
def bispectrum(
    ca: Float[Tensor, "*batch n 3"], mask: Bool[Tensor, "*batch n"] | None = None
) -> Float[Tensor, "*batch n features"]:
    """The invariants of the CA atoms (Å) around each residue; residues outside `mask` surround none.

    Rotations and translations leave them alone; a mirror multiplies them by `parity()`.
    """
    return _triple_products(_projection(ca, mask))


def parity() -> Float[Tensor, "features"]:
    """For each entry of the bispectrum, 1 or -1: what a mirror multiplies it by."""
    signs = [torch.full((len(chosen[0]),), (-1.0) ** sum(degrees)) for degrees, chosen in _triples().items()]
    return torch.cat(signs)


# Descriptors


def _projection(ca: Float[Tensor, "*b n 3"], mask: Bool[Tensor, "*b n"] | None) -> Float[Tensor, "*b n S radial"]:
    """Coefficients of the density around each residue."""
    vectors = pairwise_vectors(ca)
    distance = safe_norm(vectors, keepdim=True)
    harmonics = solid_harmonics(vectors / distance, LMAX)
    other = ~torch.eye(ca.shape[-2], dtype=torch.bool, device=ca.device)
    counted = other if mask is None else other & mask[..., None, :]
    return harmonics.mT @ (_radial(distance) * counted[..., None])


def _radial(distance: Float[Tensor, "*b 1"]) -> Float[Tensor, "*b radial"]:
    """Squared cosines, smooth where they end; between the first and the last centre they add up to 1."""
    offset = (distance - distance.new_tensor(CENTRES)) / WIDTH
    return (0.5 * torch.pi * offset.clamp(-1, 1)).cos().square()


def _triple_products(coefficients: Float[Tensor, "*b S radial"]) -> Float[Tensor, "*b features"]:
    parts = split(coefficients)
    products = []
    for (first, second, third), (p, q, r) in _triples().items():
        coupling = clebsch_gordan(first, second, third).to(coefficients)
        pair = torch.einsum("...ip,...jq,ijk->...pqk", parts[first], parts[second], coupling)
        products.append((pair @ parts[third][..., None, :, :])[..., p, q, r])
    return torch.cat(products, dim=-1)


@cache
def _triples() -> dict[tuple[int, int, int], tuple[Int[Tensor, "k"], Int[Tensor, "k"], Int[Tensor, "k"]]]:
    """The triples of degrees that couple, and the triples of radial functions for each: all that differ and are not 0.

    Degrees rise. Coefficients of equal degree exchange for 1 or, where the degrees add up to an odd number, for -1.
    """
    radial = torch.cartesian_prod(*[torch.arange(len(CENTRES))] * 3)
    p, q, r = radial.unbind(-1)
    triples = {}
    for degrees in combinations_with_replacement(range(LMAX + 1), 3):
        first, second, third = degrees
        if third > first + second:
            continue
        step = sum(degrees) % 2  # 1: equal coefficients give 0
        kept = torch.ones_like(p, dtype=torch.bool)
        if first == second:
            kept &= q - p >= step
        if second == third:
            kept &= r - q >= step
        if kept.any():
            triples[degrees] = (p[kept], q[kept], r[kept])
    return triples


class _Descriptors(NamedTuple):
    """Of the residues chosen, chain after chain."""

    values: Float[Tensor, "residues features"]
    length: Int[Tensor, "chains"]


def _descriptors(chains: Sequence[Float[Tensor, "_ 3"]], each: int, generator: torch.Generator) -> _Descriptors:
    """Of `each` residues of every chain, chosen at random, or all it has."""
    values = []
    for start in range(0, len(chains), BATCH):
        ca, mask = pad_chains(chains[start : start + BATCH])
        rank = torch.rand(mask.shape, generator=generator).to(ca.device).masked_fill(~mask, 2.0).argsort(1).argsort(1)
        values.append(_triple_products(_projection(ca.float(), mask)[mask & (rank < each)]))
    return _Descriptors(torch.cat(values), torch.tensor([min(len(chain), each) for chain in chains]))


def _some(count: int, limit: int, generator: torch.Generator) -> list[int]:
    return torch.randperm(count, generator=generator)[:limit].sort().values.tolist()


# Discrepancy


class _Kernel(NamedTuple):
    """The kernel summed over the residues of each pair of chains, samples before references."""

    sums: Float[Tensor, "chains chains"]
    length: Float[Tensor, "chains"]


def _kernel_sums(x: _Descriptors, y: _Descriptors) -> _Kernel:
    spread, mean = torch.std_mean(y.values, dim=0)
    values = (torch.cat([x.values, y.values]) - mean) / spread.clamp(min=torch.finfo(spread.dtype).eps)
    some = values[len(x.values) :][:: max(1, len(y.values) // MEDIAN_OF)]
    width = torch.pdist(some).median()
    length = torch.cat([x.length, y.length]).to(values.device)
    chain = torch.repeat_interleave(torch.arange(len(length), device=values.device), length)
    sums = values.new_zeros(len(length), len(length), dtype=torch.float64)
    for rows, of in zip(values.split(BLOCK), chain.split(BLOCK), strict=True):
        squared = (torch.cdist(rows, values) / width).square()
        kernel = sum((-0.5 * squared / scale**2).exp() for scale in SCALES) / len(SCALES)
        columns = kernel.new_zeros(len(rows), len(length)).index_add_(1, chain, kernel)
        sums.index_add_(0, of, columns.double())
    return _Kernel(sums, length.double())


def _discrepancy(kernel: _Kernel, num_samples: int, rounds: int, generator: torch.Generator) -> Discrepancy:
    count = len(kernel.length)
    num_references = count - num_samples
    is_sample = (torch.arange(count) < num_samples).double()
    found = _squared_mmd(kernel, is_sample, 1 - is_sample)
    samples_again = _drawn_again(num_samples, rounds, generator)
    references_again = _drawn_again(num_references, rounds, generator)
    again = _squared_mmd(kernel, pad(samples_again, (0, num_references)), pad(references_again, (num_samples, 0)))
    half = _drawn(num_references, min(num_samples, num_references // 2), rounds, generator)
    natives = _squared_mmd(kernel, pad(half, (num_samples, 0)), pad(1 - half, (num_samples, 0)))
    exchanged = _drawn(count, num_samples, rounds, generator)
    no_less = (_squared_mmd(kernel, exchanged, 1 - exchanged) >= found).sum()
    low, high, floor = (_quantile(values, q) for values, q in ((again, 0.025), (again, 0.975), (natives, 0.95)))
    return Discrepancy(float(found), low, high, floor, float(1 + no_less) / (1 + rounds))


def _squared_mmd(
    kernel: _Kernel, samples: Float[Tensor, "*rounds chains"], references: Float[Tensor, "*rounds chains"]
) -> Float[Tensor, "*rounds"]:
    """Unbiased estimate from how often each chain counts among the samples and among the references."""
    sums, length = kernel
    own = sums.diagonal()
    samples, references = samples.to(length), references.to(length)

    def within(times: Float[Tensor, "*rounds chains"]) -> Float[Tensor, "*rounds"]:
        """Mean kernel of two residues of different chains."""
        pairs = (times @ length).square() - times.square() @ length.square()
        return ((times @ sums * times).sum(-1) - times.square() @ own) / pairs

    between = (samples @ sums * references).sum(-1) / ((samples @ length) * (references @ length))
    return within(samples) + within(references) - 2 * between


def _drawn_again(count: int, rounds: int, generator: torch.Generator) -> Float[Tensor, "rounds count"]:
    """How often each of `count` is drawn in as many draws with replacement (bootstrap)."""
    drawn = torch.randint(count, (rounds, count), generator=generator)
    return torch.zeros(rounds, count, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())


def _drawn(count: int, size: int, rounds: int, generator: torch.Generator) -> Float[Tensor, "rounds count"]:
    """1 for each of the `size` drawn without replacement, else 0."""
    rank = torch.rand(rounds, count, generator=generator).argsort(1).argsort(1)
    return (rank < size).double()


def _quantile(values: Float[Tensor, "rounds"], q: float) -> float:
    return float(values.nanquantile(q))
