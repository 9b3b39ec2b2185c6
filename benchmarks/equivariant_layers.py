"""ophio's equivariant operations and layers against the same ones of e3nn, cuEquivariance and e3nn-jax.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/equivariant_layers.py [--quick] [--rows product linear ...]

One process, one thread. Contenders take turns, so that all see the same machine; CPU seconds, median over the turns.
Before they are timed, values are compared with e3nn's in float64. Writes equivariant_layers.csv and .md
at the end of every size, and goes on where it was stopped. Needs the extras `test` and `benchmark`. Builds of whole
layers are in `e3nn_layers.py`.
"""

import argparse
import csv
import functools
import os
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_ENABLE_X64", "1")

import cuequivariance as cue
import cuequivariance_torch as cuet
import e3nn_jax
import jax
import numpy as np
import torch
import yaml
from e3nn import o3
from e3nn_layers import (
    E3nnSelfInteraction,
    E3nnSequenceConvolution,
    channelwise_product,
    copy_linear,
    irreps_of,
    product_parts,
    swap_core,
    to_e3nn,
)
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ophio.autoencoder import Autoencoder
from ophio.cloud import Cloud
from ophio.config import CONFIG_DIR
from ophio.irreps import ChannelwiseProduct, Linear, components_first, components_last, dim, solid_harmonics, split
from ophio.layers import SelfInteraction, SequenceConvolution
from ophio.losses import ReconstructionLoss
from ophio.memory import keep_freed_memory
from ophio.protein import Protein
from ophio.tables import markdown

HERE = Path(__file__).parent
TURNS = 3
LONG = 2**19  # numbers of one component: from here on one turn
CHAIN = 64  # nodes of a chain, for layers that look along it
LARGEST = 2e8  # numbers in the output of a product: more is left out
KERNEL = 5
WEIGHTS = yaml.safe_load((CONFIG_DIR / "loss" / "reconstruction.yaml").read_text())["weights"]

Values = Callable[[], list[Tensor]]


@dataclass
class Contender:
    """One implementation. `forward` and `both` (also the gradients of inputs and weights) can be called repeatedly."""

    name: str
    forward: Callable[[], object]
    both: Callable[[], object]
    values: Values  # in ophio's layout, of the same inputs
    temporary: float | None = None  # bytes, where it is known from elsewhere


def in_torch(name: str, module: Callable, inputs: list[Tensor], values: Callable[..., list[Tensor]]) -> Contender:
    inputs = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]

    @torch.no_grad()
    def forward() -> object:
        return module(*inputs)

    def outputs() -> list[Tensor]:
        out = module(*inputs)
        return list(out) if isinstance(out, (list, tuple)) else [out]

    with torch.no_grad():
        gradients = [torch.ones_like(x) for x in outputs()]

    def both() -> None:
        torch.autograd.backward(outputs(), gradients)
        weights = module.parameters() if isinstance(module, nn.Module) else ()
        for leaf in (*inputs, *weights):
            leaf.grad = None

    return Contender(name, forward, both, lambda: values(forward()))


def in_jax(name: str, function: Callable, inputs: list[np.ndarray], values: Callable[..., list[Tensor]]) -> Contender:
    """`function`: arrays -> list of arrays; compiled beforehand."""

    def gradients(arrays, of_out):
        out, pull = jax.vjp(function, *arrays)
        return out, pull(of_out)  # out, or the forward pass would be left out

    inputs = [jax.numpy.asarray(x) for x in inputs]
    forward = jax.jit(function).lower(*inputs).compile()
    of_out = [jax.numpy.ones_like(x) for x in forward(*inputs)]  # an argument: constants would be compiled away
    both = jax.jit(gradients).lower(inputs, of_out).compile()
    memory = both.memory_analysis()
    return Contender(
        name,
        lambda: jax.block_until_ready(forward(*inputs)),
        lambda: jax.block_until_ready(both(inputs, of_out)),
        lambda: values([torch.from_numpy(np.asarray(x)) for x in forward(*inputs)]),
        memory.temp_size_in_bytes + memory.output_size_in_bytes,
    )


# Rows: each gives its contenders, e3nn first


def product(lmax: int, channels: int, nodes: int, dtype: torch.dtype, compiled: bool) -> list[Contender]:
    left, right = (torch.randn(nodes, dim(lmax), channels, dtype=dtype) for _ in range(2))
    ours, theirs = ChannelwiseProduct(lmax), channelwise_product(lmax, channels).to(dtype)
    counts = ours.paths_per_degree
    in_e3nn = functools.partial(product_parts, counts=counts, channels=channels)
    flat = [to_e3nn(left), to_e3nn(right)]
    contenders = [
        in_torch("e3nn", theirs, flat, in_e3nn),
        in_torch("ophio", ours, [as_ours(left), as_ours(right)], list),
        in_jax("e3nn-jax jit", *_jax_product(lmax, channels, flat)),
        in_torch("cuEquivariance", *_cue_product(lmax, channels, [left, right])),
    ]
    if compiled:
        contenders.append(
            in_torch("ophio compiled", torch.compile(ours, dynamic=False), [as_ours(left), as_ours(right)], list)
        )
        eager = channelwise_product(lmax, channels, script=False).to(dtype)
        contenders.append(in_torch("e3nn compiled", torch.compile(eager, dynamic=False), flat, in_e3nn))
    return contenders


def _jax_product(lmax: int, channels: int, flat: list[Tensor]) -> tuple:
    """The authors': channels to an axis, product, axis to channels."""
    irreps = str(irreps_of(lmax, channels))
    kept = [e3nn_jax.Irrep(degree, 1) for degree in range(lmax + 1)]

    def function(*arrays):
        left, right = (e3nn_jax.IrrepsArray(irreps, x).mul_to_axis() for x in arrays)
        out = e3nn_jax.tensor_product(left, right, filter_ir_out=kept).regroup()
        return out.chunks

    def values(chunks: list[Tensor]) -> list[Tensor]:  # [n, c, p, m]
        return [chunk.permute(0, 3, 2, 1).flatten(-2) for chunk in chunks]

    return function, [x.numpy() for x in flat], values


def _cue_product(lmax: int, channels: int, inputs: list[Tensor]) -> tuple:
    pairs = [(a, b) for a in range(lmax + 1) for b in range(lmax + 1)]
    left, right = (cue.Irreps("SO3", "+".join(f"{channels}x{pair[k]}" for pair in pairs)) for k in (0, 1))
    kept = list(cue.Irreps("SO3", "+".join(str(degree) for degree in range(lmax + 1))))
    descriptor = cue.descriptors.elementwise_tensor_product(left, right, [ir for _, ir in kept])
    dtype = inputs[0].dtype
    module = cuet.SegmentedPolynomial(descriptor.polynomial, method="naive", math_dtype=dtype).to(dtype)

    def repeated(x: Tensor, which: int) -> Tensor:  # a segment for each pair of degrees, as the descriptor wants them
        parts = split(x)
        return torch.cat([parts[pair[which]].flatten(-2) for pair in pairs], dim=-1)

    def function(a: Tensor, b: Tensor) -> Tensor:
        return module([repeated(a, 0), repeated(b, 1)])[0]

    def values(out: Tensor) -> list[Tensor]:  # its paths go pair by pair of degrees; each is [2l+1, channels]
        ends = [c for a, b in pairs for c in range(abs(a - b), min(lmax, a + b) + 1)]
        paths = out.split([(2 * c + 1) * channels for c in ends], dim=-1)
        shaped = [path.unflatten(-1, (-1, channels)) for path in paths]
        return [torch.cat([x for x, c in zip(shaped, ends, strict=True) if c == k], -1) for k in range(lmax + 1)]

    return function, inputs, values


def harmonics(lmax: int, channels: int, nodes: int, dtype: torch.dtype, compiled: bool) -> list[Contender]:
    vectors = torch.randn(nodes * channels, 3, dtype=dtype)  # as many as there are features
    degrees = list(range(lmax + 1))
    in_cue = cuet.SphericalHarmonics(degrees, normalize=False, use_fallback=True).to(dtype)
    irreps = e3nn_jax.Irreps.spherical_harmonics(lmax)
    contenders = [
        in_torch("e3nn", lambda x: o3.spherical_harmonics(degrees, x, False, "component"), [vectors], _one),
        in_torch("ophio", lambda x: solid_harmonics(x, lmax), [vectors], _one),
        in_torch("cuEquivariance", in_cue, [vectors], _one),
        in_jax(
            "e3nn-jax jit",
            lambda x: [e3nn_jax.spherical_harmonics(irreps, x, False, normalization="component").array],
            [vectors.numpy()],
            list,
        ),
    ]
    if compiled:
        fast = torch.compile(solid_harmonics, dynamic=False)
        contenders.append(in_torch("ophio compiled", lambda x: fast(x, lmax), [vectors], _one))
    return contenders


def linear(lmax: int, channels: int, nodes: int, dtype: torch.dtype, compiled: bool) -> list[Contender]:
    features = torch.randn(nodes, dim(lmax), channels, dtype=dtype)
    ours = Linear([channels] * (lmax + 1), channels, bias=False).to(dtype)
    irreps = irreps_of(lmax, channels)
    theirs = copy_linear(ours, o3.Linear(irreps, irreps)).to(dtype)
    weights = [weight.detach().numpy() for weight in ours.weights]

    def function(x, *weights):
        mapped = zip(e3nn_jax.IrrepsArray(str(irreps), x).chunks, weights, strict=True)
        return [jax.numpy.einsum("nci,cd->ndi", chunk, weight) for chunk, weight in mapped]

    flat = to_e3nn(features)
    in_cue = cuet.Linear(
        cue.Irreps("O3", str(irreps)), cue.Irreps("O3", str(irreps)), layout=cue.ir_mul, use_fallback=True
    ).to(dtype)
    with torch.no_grad():
        in_cue.weight.copy_(torch.cat([weight.flatten() for weight in ours.weights])[None] * channels**0.5)
    return [
        in_torch("e3nn", theirs, [flat], lambda out: product_parts(out, [1] * (lmax + 1), channels)),
        in_torch("ophio", ours, [as_ours(features)], lambda out: list(split(out))),
        in_torch(
            "cuEquivariance", in_cue, [features.flatten(-2)], lambda out: list(split(out.unflatten(-1, (-1, channels))))
        ),
        in_jax("e3nn-jax jit", function, [flat.numpy(), *weights], lambda chunks: [chunk.mT for chunk in chunks]),
    ]


def self_interaction(lmax: int, channels: int, nodes: int, dtype: torch.dtype, compiled: bool) -> list[Contender]:
    cloud, ours = _cloud(lmax, channels, nodes, dtype), SelfInteraction(lmax, channels).to(dtype)
    theirs = E3nnSelfInteraction(ours).to(dtype)
    flat = to_e3nn(cloud.features)

    class OnFeatures(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = ours

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(cloud.replace(features=x)).features

    return [
        in_torch("e3nn", theirs, [flat], lambda out: product_parts(out, [1] * (lmax + 1), channels)),
        in_torch("ophio", OnFeatures(), [cloud.features], lambda out: list(split(out))),
    ]


def sequence_convolution(lmax: int, channels: int, nodes: int, dtype: torch.dtype, compiled: bool) -> list[Contender]:
    cloud = _cloud(lmax, channels, nodes, dtype)
    ours = SequenceConvolution(lmax, channels, channels, KERNEL).to(dtype)
    theirs = E3nnSequenceConvolution(ours, channels).to(dtype)

    class OnFeatures(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = ours

        def forward(self, positions: Tensor, x: Tensor) -> Tensor:
            return self.layer(Cloud(positions, x, cloud.mask)).features

    flat = to_e3nn(cloud.features)
    return [
        in_torch("e3nn", theirs, [cloud.positions, flat], lambda out: product_parts(out, [1] * (lmax + 1), channels)),
        in_torch("ophio", OnFeatures(), [cloud.positions, cloud.features], lambda out: list(split(out))),
    ]


def autoencoder(lmax: int, channels: int, nodes: int, dtype: torch.dtype, compiled: bool) -> list[Contender]:
    """Forward is a reconstruction with its loss; the other one is a training step without its optimiser."""
    protein = made_up_proteins(max(1, nodes // CHAIN))
    protein = protein.map(lambda t: t.to(dtype) if t.is_floating_point() else t)
    widths, loss = [channels, channels * 3 // 2, channels * 2, channels * 3], ReconstructionLoss(WEIGHTS)

    def build(swap: bool) -> nn.Module:
        torch.manual_seed(0)
        model = Autoencoder(widths, [2, 2, 2], lmax=lmax, latent_channels=channels, geometry_sweeps=10)
        return (swap_core(model) if swap else model).to(dtype)

    class Step(nn.Module):
        def __init__(self, model: Autoencoder):
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            torch.manual_seed(0)  # the loss draws atoms
            decoded, kl = self.model(protein)
            return loss(decoded, kl, protein)[0]

    def contender(name: str, model: Autoencoder) -> Contender:
        return in_torch(name, Step(model), [], lambda out: [out[None], model(protein)[0].positions])

    return [contender("e3nn", build(swap=True)), contender("ophio", build(swap=False))]


def _cloud(lmax: int, channels: int, nodes: int, dtype: torch.dtype) -> Cloud:
    batch = (max(1, nodes // CHAIN), min(CHAIN, nodes))
    positions = torch.randn(*batch, 3, dtype=dtype).cumsum(1) * 2
    features = as_ours(torch.randn(*batch, dim(lmax), channels, dtype=dtype))
    return Cloud(positions, features, torch.ones(batch, dtype=torch.bool))


def as_ours(features: Tensor) -> Tensor:
    """In memory as ophio's operations return features, as every other contender gets them in its own layout."""
    return components_last(components_first(features), features.shape[:-2])


def made_up_proteins(count: int) -> Protein:
    """A batch [count, CHAIN]: noise along helices, types in turn."""
    step = torch.arange(CHAIN)
    ca = torch.stack([2.3 * (1.745 * step).cos(), 2.3 * (1.745 * step).sin(), 1.5 * step], dim=-1)
    positions = ca[:, None] + 1.5 * torch.randn(count, CHAIN, 14, 3)
    proteins = Protein.from_atoms(positions[0], torch.ones(CHAIN, 14, dtype=torch.bool), step % 20)
    batch = proteins.map(lambda t: t.expand(count, *t.shape).contiguous())
    return batch.replace(positions=positions * batch.atom_mask[..., None])


def _one(out: Tensor) -> list[Tensor]:
    return [out]


ROWS = {
    "product": product,
    "harmonics": harmonics,
    "linear": linear,
    "self_interaction": self_interaction,
    "sequence_convolution": sequence_convolution,
    "autoencoder": autoencoder,
}


# Measuring


def compare(row: str, lmax: int, channels: int) -> dict[str, float]:
    """Largest difference of each contender from e3nn in float64, relative to the largest value.

    Paths of a product may differ in sign: that of a coupling tensor is a convention.
    """
    torch.set_default_dtype(torch.float64)  # e3nn takes its constants in the default dtype
    torch.manual_seed(0)
    reference, *others = ROWS[row](lmax, channels, 64, torch.float64, False)
    expected = reference.values()
    found = {other.name: _difference(other.values(), expected, channels, row == "product") for other in others}
    torch.set_default_dtype(torch.float32)
    return {reference.name: 0.0} | found


def _difference(found: list[Tensor], expected: list[Tensor], channels: int, signs: bool) -> float:
    worst = 0.0
    for one, two in zip(found, expected, strict=True):
        if signs:
            one, two = (x.unflatten(-1, (-1, channels)) for x in (one, two))
            one = one * (one * two).sum((0, 1, 3), keepdim=True).sign()
        worst = max(worst, float((one - two).detach().abs().max() / two.detach().abs().max()))
    return worst


def turns(channels: int, nodes: int) -> int:
    return TURNS if nodes * channels < LONG else 1


def measure(contenders: list[Contender], repeats: int) -> dict[str, tuple[float, float]]:
    """Median CPU seconds of a forward pass, and of one with gradients; contenders in turn, the first turn not counted."""
    seconds: dict[str, list[list[float]]] = {contender.name: [[], []] for contender in contenders}
    for turn in range(-1, repeats):
        for contender in contenders:
            for kind, call in enumerate((contender.forward, contender.both)):
                start = time.process_time()
                call()
                if turn >= 0:
                    seconds[contender.name][kind].append(time.process_time() - start)
    return {name: tuple(sorted(times)[repeats // 2] for times in both) for name, both in seconds.items()}


def peak_megabytes(contender: Contender) -> float:
    """Most that is allocated at a time beyond inputs and weights, in a pass with gradients."""
    if contender.temporary is not None:
        return contender.temporary / 1e6
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        contender.both()
    events = profiler.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    return float(max(np.cumsum([size for _, size in sorted(changes, key=lambda change: change[0])]), default=0)) / 1e6


def bench(row: str, lmax: int, channels: int, nodes: int, compiled: bool) -> list[dict]:
    if (
        row == "product"
        and nodes * channels * sum((2 * k + 1) * n for k, n in enumerate(ChannelwiseProduct(lmax).paths_per_degree))
        > LARGEST
    ):
        return []
    torch._dynamo.reset()
    difference = compare(row, lmax, channels)
    contenders = ROWS[row](lmax, channels, nodes, torch.float32, compiled)
    repeats = turns(channels, nodes)
    times = measure(contenders, repeats)
    base = times["e3nn"]
    return [
        {
            "row": row, "lmax": lmax, "channels": channels, "nodes": nodes, "turns": repeats, "contender": contender.name,
            "forward ms": 1e3 * times[contender.name][0], "both ms": 1e3 * times[contender.name][1],
            "forward x e3nn": base[0] / times[contender.name][0], "both x e3nn": base[1] / times[contender.name][1],
            "peak MB": peak_megabytes(contender), "difference": difference[contender.name.removesuffix(" compiled")],
        }
        for contender in contenders
    ]  # fmt: skip


def sizes(row: str, quick: bool) -> list[tuple[int, int, int]]:
    if quick:
        return [(2, 16, 256)]
    if row == "autoencoder":
        return [(2, 32, 512), (3, 32, 512), (2, 16, 2048), (2, 32, 2048)]
    return [(lmax, c, n) for n in (2048, 16384) for lmax in (2, 3) for c in (32, 64, 128, 16)]


def earlier() -> list[dict]:
    """Results of a run that was stopped; remove the file to measure anew."""
    path = HERE / "equivariant_layers.csv"
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    whole = ("lmax", "channels", "nodes", "turns")
    return [
        {k: v if k in ("row", "contender") else int(v) if k in whole else float(v) for k, v in entry.items()}
        for entry in rows
    ]


def report(results: list[dict]) -> str:
    packages = ("torch", "e3nn", "cuequivariance", "cuequivariance-torch", "e3nn-jax", "jax")
    versions = ", ".join(f"{name} {_version(name)}" for name in packages)
    notes = (
        f"{_processor()}, one thread on one core of {os.cpu_count()}, shared with other processes; Python "
        f"{platform.python_version()}, {versions}.",
        "CPU milliseconds, median over turns in which all contenders take part. `both`: forward and backward.",
        "Ratios: above 1 is faster than e3nn. Freed memory is kept for the next tensor (`ophio.memory`).",
        "Difference: from e3nn in float64, relative; compiled contenders are compared uncompiled.",
        "Peak: allocated in one pass; for e3nn-jax, as its compiler plans it.",
        "e3nn is its default (TorchScript where it generates code). Its autoencoder is ophio's with self-interactions and",
        "the linear maps of convolutions by e3nn, changes of layout between them included.",
        "Made by `benchmarks/equivariant_layers.py`.",
    )
    lines = [" ".join(notes)]
    for row in ROWS:
        chosen = [{k: v for k, v in entry.items() if k != "row"} for entry in results if entry["row"] == row]
        if chosen:
            lines += ["", f"## {row.replace('_', ' ')}", "", markdown(chosen)]
    return "\n".join(lines) + "\n"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small size of every row, printed only")
    parser.add_argument(
        "--compiled", action="store_true", help="at lmax 2, 32 channels, 2,048 nodes with torch.compile too"
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    keep_freed_memory()
    results = [] if options.quick else earlier()
    done = {(entry["row"], entry["lmax"], entry["channels"], entry["nodes"]) for entry in results}
    order = [(row, *size) for row in options.rows for size in sizes(row, options.quick)]
    order.sort(key=lambda task: (task[3] * task[2] > LONG, task[3] > 2048, task[0] == "autoencoder", task[2] != 32))
    for task in order:
        if task in done:
            continue
        results += bench(*task, options.compiled and task[1:] == (2, 32, 2048))
        if options.quick:
            continue
        with open(HERE / "equivariant_layers.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, results[0])
            writer.writeheader()
            writer.writerows(results)
        (HERE / "equivariant_layers.md").write_text(report(results))
    print(report(results))


if __name__ == "__main__":
    main()
