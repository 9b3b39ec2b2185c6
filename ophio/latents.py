"""Latents on disk: one .npz for each chain, arrays only (no pickle)."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import torch

from ophio.autoencoder import Latent
from ophio.cloud import Cloud
from ophio.errors import UserError

FORMAT = 1
_TENSORS = ("positions", "features", "mask", "residue_mask", "residue_number", "insertion_code")


def save_latent(latent: Latent, path: str | Path, model: str) -> None:
    """Writes the latent of one chain: positions [n, 3] (Å), features [n, S, C], masks, residue names, the model's name."""
    cloud = latent.cloud
    arrays = dict(zip(_TENSORS, (cloud.positions, cloud.features, cloud.mask, latent.residue_mask), strict=False))
    arrays |= {"residue_number": latent.residue_number, "insertion_code": latent.insertion_code}
    labels = {"chain_id": latent.chain_id, "name": latent.name, "model": model, "format": FORMAT}
    buffer = io.BytesIO()
    np.savez(buffer, **{key: value.cpu().numpy() for key, value in arrays.items()}, **labels)
    write_whole(Path(path), buffer.getvalue())


def load_latent(path: str | Path) -> tuple[Latent, str]:
    """The latent, and the name of the model that made it."""
    try:
        with np.load(path, allow_pickle=False) as file:
            entries = {key: file[key] for key in (*_TENSORS, "chain_id", "name", "model", "format")}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        raise UserError(f"{path}: not a latent that `ophio encode` wrote, or incomplete") from None
    if int(entries["format"]) != FORMAT:
        raise UserError(f"{path}: written in format {entries['format']}, this ophio reads {FORMAT}")
    positions, features, mask, *residues = (torch.from_numpy(entries[key]) for key in _TENSORS)
    latent = Latent(Cloud(positions, features, mask), *residues, str(entries["chain_id"]), str(entries["name"]))
    return latent, str(entries["model"])


def write_whole(path: Path, content: bytes) -> None:
    """The file appears complete or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
