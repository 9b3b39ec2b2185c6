"""Latents on disk: one .npz for each chain, arrays only (no pickle)."""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ophio.autoencoder import Autoencoder, Latent
from ophio.cloud import Cloud
from ophio.errors import UserError
from ophio.files import write_whole

FORMAT = 1
_TENSORS = {  # entry: kind of its dtype, and its shape in nodes n, degrees S, channels C, residues L
    "positions": ("f", "n3"),
    "features": ("f", "nSC"),
    "mask": ("b", "n"),
    "residue_mask": ("b", "L"),
    "residue_number": ("i", "L"),
    "insertion_code": ("i", "L"),
}
_LABELS = ("chain_id", "name", "model", "weights", "format")


def save_latent(latent: Latent, path: str | Path, model: str, weights: str) -> None:
    """Writes the latent of one chain: positions [n, 3] (Å), features [n, S, C], masks, residue names.

    `model` is the name or path of the model that made it, `weights` their `fingerprint`.
    """
    cloud = latent.cloud
    tensors = (cloud.positions, cloud.features, cloud.mask)
    tensors += (latent.residue_mask, latent.residue_number, latent.insertion_code)
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in zip(_TENSORS, tensors, strict=True)}
    labels = (latent.chain_id, latent.name, model, weights, FORMAT)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays, **dict(zip(_LABELS, labels, strict=True)))
    write_whole(Path(path), buffer.getvalue())


def load_latent(path: str | Path) -> tuple[Latent, str, str]:
    """The latent, the name or path of the model that made it, and the `fingerprint` of its weights.

    Raises UserError for whatever `save_latent` did not write, or not completely.
    """
    try:
        data = io.BytesIO(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        with np.lib.npyio.NpzFile(data, allow_pickle=False) as file:
            entries = {key: file[key] for key in (*_TENSORS, *_LABELS)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{path}: not a latent that `ophio encode` wrote, or incomplete") from None
    if int(entries["format"]) != FORMAT:
        raise UserError(f"{path}: written in format {entries['format']}, this ophio reads {FORMAT}")
    _check(entries, path)
    positions, features, mask, *residues = (torch.from_numpy(entries[name]) for name in _TENSORS)
    chain_id, name, model, weights = (str(entries[label]) for label in _LABELS[:-1])
    return Latent(Cloud(positions, features, mask), *residues, chain_id, name), model, weights


def _check(entries: dict[str, np.ndarray], path: str | Path) -> None:
    sizes = {"3": 3}
    for name, (kind, shape) in _TENSORS.items():
        array = entries[name]
        fits = array.dtype.kind == kind and array.ndim == len(shape)
        if not fits or any(sizes.setdefault(axis, size) != size for axis, size in zip(shape, array.shape)):
            raise UserError(f"{path}: {name} is {array.dtype}{list(array.shape)}, which does not fit the other arrays")
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {name} has entries that are not finite numbers")


def fingerprint(model: nn.Module) -> str:
    """Of a model's weights: tells whether a latent came from the same ones."""
    return _digest(model.state_dict())


def encoder_fingerprint(model: Autoencoder) -> str:
    """Of the weights that decide what a latent means: the same after the decoder alone was trained on."""
    state = model.state_dict()
    return _digest({name: tensor for name, tensor in state.items() if name.startswith(model.ENCODER)})


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
