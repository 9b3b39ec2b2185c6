"""What a corpus stores of one chain, and its Arrow columns."""

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from einops import rearrange
from jaxtyping import Bool, UInt16

from ophio.constants import NUM_SLOTS
from ophio.protein import Protein

SCALARS = {
    "id": pa.string(),
    "source": pa.string(),
    "origin": pa.string(),
    "split": pa.string(),
    "cluster30": pa.int64(),
    "cluster90": pa.int64(),
    "group": pa.int64(),
    "kind": pa.string(),
    "chain_id": pa.string(),
    "length": pa.int32(),
    "checksum": pa.uint32(),  # `checksum` of the ragged columns
}
RAGGED = {  # as NumPy has them: to ask Arrow for these types takes pandas in its older versions
    "atoms": np.dtype("float32"),  # x, y, z in Å of the atoms that are present, residue by residue
    "atom_mask": np.dtype("uint16"),  # one per residue: bit k tells that the atom of slot k is present
    "residue_type": np.dtype("uint8"),
    "residue_number": np.dtype("int32"),
    "insertion_code": np.dtype("uint8"),
}
_LISTS = {name: pa.large_list(pa.from_numpy_dtype(dtype)) for name, dtype in RAGGED.items()}
SCHEMA = pa.schema([*SCALARS.items(), *_LISTS.items()])


@dataclass(frozen=True)
class Entry:
    """One chain with its provenance. Entries that share `group` are conformers of one sequence (-1: no group)."""

    protein: Protein
    id: str
    source: str
    origin: str  # designed, natural, predicted, or unknown
    split: str  # train, val or test
    cluster30: int
    cluster90: int = -1
    group: int = -1
    kind: str = ""


def stable_hash(text: str) -> int:
    """A 63-bit integer that is the same on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def record_batch(entries: Sequence[Entry]) -> pa.RecordBatch:
    """The entries as rows of `SCHEMA`; coordinates are centred on the mean CA."""
    rows = [_row(entry) for entry in entries]
    columns = [pa.array([row[name] for row in rows], dtype) for name, dtype in SCALARS.items()]
    columns += [_ragged([row[name] for row in rows], dtype) for name, dtype in RAGGED.items()]
    return pa.record_batch(columns, schema=SCHEMA)


def checksum(row: Mapping[str, np.ndarray], columns: Sequence[str] = tuple(RAGGED)) -> int:
    """crc32 over ragged columns of one chain."""
    crc = 0
    for name in columns:
        crc = zlib.crc32(np.ascontiguousarray(row[name], RAGGED[name]).view(np.uint8).data, crc)
    return crc


def protein_of(row: Mapping[str, np.ndarray], name: str, chain_id: str) -> Protein:
    """The chain of one row, from its ragged columns. B-factors are not stored and read as 0."""
    mask = unpack_mask(row["atom_mask"])
    positions = np.zeros((*mask.shape, 3), np.float32)
    positions[mask] = rearrange(row["atoms"], "(atoms xyz) -> atoms xyz", xyz=3)
    residue_type, number, code = (
        torch.from_numpy(row[name].astype(np.int64)) for name in ("residue_type", "residue_number", "insertion_code")
    )
    b_factor = torch.zeros(mask.shape)
    atoms = torch.from_numpy(positions), torch.from_numpy(mask)
    return Protein(*atoms, residue_type, number, code, b_factor, chain_id, name)


def pack_mask(mask: Bool[np.ndarray, "L 14"]) -> UInt16[np.ndarray, " L"]:
    """Which atoms a residue has, as bits: slot k is 2^k."""
    return (mask << np.arange(NUM_SLOTS, dtype=np.uint16)).sum(1, dtype=np.uint16)


def unpack_mask(bits: UInt16[np.ndarray, " L"]) -> Bool[np.ndarray, "L 14"]:
    """The inverse of `pack_mask`."""
    return (bits[:, None] >> np.arange(NUM_SLOTS, dtype=np.uint16) & 1).astype(bool)


def _row(entry: Entry) -> dict:
    protein = entry.protein.center()
    mask = protein.atom_mask.numpy()
    atoms = protein.positions.float().numpy()[mask].ravel()
    ragged = {
        "atoms": atoms,
        "atom_mask": pack_mask(mask),
        "residue_type": protein.residue_type.numpy(),
        "residue_number": protein.residue_number.numpy(),
        "insertion_code": protein.insertion_code.numpy(),
    }
    scalars = {name: getattr(entry, name) for name in SCALARS if hasattr(entry, name)}
    scalars |= {"chain_id": protein.chain_id, "length": protein.num_residues, "checksum": checksum(ragged)}
    return scalars | ragged


def _ragged(arrays: Sequence[np.ndarray], dtype: np.dtype) -> pa.LargeListArray:
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
    values = np.concatenate(arrays) if arrays else np.empty(0)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values.astype(dtype)))
