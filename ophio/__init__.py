"""ophio: protein structures in a compressed, SO(3)-equivariant latent space (Ophiuchus, arXiv:2310.02508).

    import ophio

    protein = ophio.read_structure("my.pdb")                    # a Protein: positions [L, 14, 3] in Å, atom_mask [L, 14]
    model = ophio.load("mini")                                  # an Autoencoder: a released name, or a folder that training wrote
    decoded = model.decode(model.encode(protein))
    frames = ophio.interpolate(protein, decoded, ophio.load("monomer"), num=25)
    samples = ophio.generate(*ophio.load_diffusion("mini_diffusion"), [64, 80], [1, 2], ophio.SamplerSettings())
    ophio.write_structure(samples[0].protein, "sample.pdb")

These names are imported when they are first used, so that `import ophio` costs nothing. All else is imported from the
module that it lives in.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ophio.autoencoder import Autoencoder as Autoencoder
    from ophio.errors import UserError as UserError
    from ophio.interpolation import interpolate as interpolate
    from ophio.io import read_structure as read_structure, write_structure as write_structure
    from ophio.pretrained import load as load, load_diffusion as load_diffusion
    from ophio.protein import Protein as Protein
    from ophio.sampling import SamplerSettings as SamplerSettings, generate as generate

__version__ = "0.1.0"

_HOMES = {
    "Autoencoder": "ophio.autoencoder",
    "Protein": "ophio.protein",
    "SamplerSettings": "ophio.sampling",
    "UserError": "ophio.errors",
    "generate": "ophio.sampling",
    "interpolate": "ophio.interpolation",
    "load": "ophio.pretrained",
    "load_diffusion": "ophio.pretrained",
    "read_structure": "ophio.io",
    "write_structure": "ophio.io",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ophio' has no attribute {name!r}; it has {', '.join(_HOMES)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
