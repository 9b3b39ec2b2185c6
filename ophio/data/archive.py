"""Chains from .npz archives: flat concatenated arrays, all-atom (`coords`, `mask`) or backbone (`ca_step`, `nco_*`)."""

import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Bool, Float

from ophio.constants import CA, NUM_SLOTS, C, N, O
from ophio.data.entry import Entry
from ophio.errors import UserError
from ophio.protein import Protein

UNIT = 0.01  # Å of one integer step


@lru_cache(maxsize=1)
def load(path: Path) -> dict[str, np.ndarray]:
    """All arrays of the archive, and `offsets`: entry k owns residues offsets[k] to offsets[k + 1].

    The archive of the last call stays in memory. Raises UserError where it cannot be read, lacks an array, or its
    lengths do not add up.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as an .npz archive ({error})") from error
    needed = {"aatype", "lengths", "ids", "split", "cluster30"}
    needed |= {"ca_step", "nco_low", "nco_high"} if "ca_step" in arrays else {"coords", "mask"}
    if missing := sorted(needed - arrays.keys()):
        raise UserError(f"{path}: no array {', '.join(missing)}; is it an archive of protein chains?")
    residues = int(arrays["lengths"].sum())
    if residues != len(arrays["aatype"]):
        raise UserError(f"{path}: lengths add up to {residues} residues, the arrays have {len(arrays['aatype'])}")
    return arrays | {"offsets": np.concatenate([[0], np.cumsum(arrays["lengths"])])}


def num_entries(path: Path) -> int:
    """How many chains an .npz archive holds. Raises UserError where it is none."""
    return len(load(path)["lengths"])


def read_entry(path: Path, index: int) -> Entry:
    """One chain of an archive, positions in Å. Raises UserError where it is none."""
    arrays = load(path)
    residues = slice(*arrays["offsets"][index : index + 2])
    coords, mask = _backbone(arrays, residues) if "ca_step" in arrays else _all_atom(arrays, residues)
    types = torch.from_numpy(arrays["aatype"][residues].astype(np.int64))
    name = str(arrays["ids"][index])

    def value(field: str, default: str | int) -> Any:
        return arrays[field][index].item() if field in arrays else default

    return Entry(
        Protein.from_atoms(torch.from_numpy(coords), torch.from_numpy(mask), types, name),
        id=name,
        source=value("source", path.name),
        origin=value("origin", "natural"),
        split=value("split", ""),
        cluster30=value("cluster30", -1),
        cluster90=value("cluster90", -1),
        group=value("group", -1),
        kind=value("kind", ""),
    )


Atoms = tuple[Float[np.ndarray, "L 14 3"], Bool[np.ndarray, "L 14"]]


def _all_atom(arrays: dict[str, np.ndarray], residues: slice) -> Atoms:
    return arrays["coords"][residues].astype(np.float32) * np.float32(UNIT), arrays["mask"][residues].copy()


def _backbone(arrays: dict[str, np.ndarray], residues: slice) -> Atoms:
    """CA stored as steps along the chain; N, C and O relative to CA, in a high and a low byte."""
    ca = np.cumsum(arrays["ca_step"][residues].astype(int), axis=0)
    around = (arrays["nco_high"][residues].astype(int) << 8) + arrays["nco_low"][residues]
    coords = np.zeros((len(ca), NUM_SLOTS, 3), np.float32)
    coords[:, CA] = ca * UNIT
    coords[:, [N, C, O]] = (ca[:, None] + around) * UNIT
    mask = np.zeros((len(ca), NUM_SLOTS), bool)
    mask[:, [N, CA, C, O]] = True
    return coords, mask
