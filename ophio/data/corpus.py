"""A prepared corpus on disk: Arrow files of chains, and a small index to choose from.

    CORPUS/shards/00000.arrow ...   one record batch each, rows as in `ophio.data.entry.SCHEMA`
    CORPUS/index.arrow              the scalar columns that filters and samplers need, and where each chain lies
    CORPUS/corpus.json              format version, counts, content hash, settings

Arrow files are mapped into memory: what is not asked for is not read.
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Dataset

from ophio.data.entry import RAGGED, SCALARS, checksum, protein_of
from ophio.errors import UserError
from ophio.protein import Protein

VERSION = 1


class Shard:
    """One mapped Arrow file: NumPy views of its columns, no copies. The mapping outlives the file handle.

    Raises UserError where the file is damaged or missing, and at a chain whose checksum is another.
    """

    def __init__(self, path: Path, checked: Sequence[str]):
        self.path, self.checked = path, checked
        (self.batch,) = _mapped_table(path).to_batches()
        columns = {name: self.batch.column(name) for name in RAGGED}
        self.offsets = {name: column.offsets.to_numpy() for name, column in columns.items()}
        self.values = {name: column.values.to_numpy() for name, column in columns.items()}

    def protein(self, row: int) -> Protein:
        """The chain of one row, its columns compared with their checksum."""
        ragged = {name: self.values[name][slice(*self.offsets[name][row : row + 2])] for name in RAGGED}
        if checksum(ragged, self.checked) != self.batch["checksum"][row].as_py():
            raise UserError(f"{self.path}: damaged (row {row}): prepare the corpus again with overwrite=true")
        return protein_of(ragged, self.batch["id"][row].as_py(), self.batch["chain_id"][row].as_py())


class Corpus(Dataset):
    """The chains of a corpus that pass the given limits; `corpus[k]` is a `Protein`.

    Memory: about 20 bytes per chain for the choice; coordinates stay in the file and are mapped when touched. Shards
    open on first use, in every process anew, so a Corpus may be pickled or forked into DataLoader workers.
    Raises UserError when the folder holds no corpus or no chain is left, and at a chain whose checksum is another.
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        min_length: int = 1,
        max_length: int | None = None,
        origins: Sequence[str] = (),
    ):
        self.path = Path(path)
        self.info = read_info(self.path)
        index = self.path / "index.arrow"
        table = _mapped_table(index)
        if self.info.get("index_crc32") not in (None, file_crc32(index)):
            raise UserError(f"{index}: damaged, or of another corpus: prepare the corpus again with overwrite=true")
        keep = pc.and_(
            pc.greater_equal(table["length"], min_length),
            pc.less_equal(table["length"], max_length or np.iinfo(np.int32).max),
        )
        if split is not None:
            keep = pc.and_(keep, pc.equal(table["split"], split))
        if origins:
            keep = pc.and_(keep, pc.is_in(table["origin"], pa.array(origins)))
        chosen = np.flatnonzero(keep.to_numpy())
        if len(chosen) == 0:
            wanted = f"split={split}, lengths {min_length}-{max_length or 'any'}, origins {list(origins) or 'any'}"
            raise UserError(f"{self.path}: no chain with {wanted}; it holds {self.info['splits']}")
        columns = (table[name].to_numpy()[chosen] for name in ("length", "cluster30", "shard", "row"))
        self.lengths, self.clusters, self._shard, self._row = columns
        self._open: dict[int, Shard] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Protein:
        return self._shard_of(index).protein(int(self._row[index]))

    def metadata(self, index: int) -> dict[str, Any]:
        """id, source, origin, split, clusters, group, kind, ... of one chain."""
        row = int(self._row[index])
        batch = self._shard_of(index).batch
        return {name: batch[name][row].as_py() for name in SCALARS}

    def _shard_of(self, index: int) -> Shard:
        number = int(self._shard[index])
        if number not in self._open:
            checked = self.info.get("checked", ["atoms"])  # older corpora have no checksum of the others
            self._open[number] = Shard(shard_path(self.path, number), checked)
        return self._open[number]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}


def shard_path(corpus: Path, number: int) -> Path:
    """Where a corpus has the shard of this number, from 0."""
    return corpus / "shards" / f"{number:05d}.arrow"


def file_crc32(path: Path) -> int:
    """crc32 of a whole file, which is mapped, not read into memory."""
    with pa.memory_map(str(path)) as file:
        return zlib.crc32(file.read_buffer())


def read_info(path: Path) -> dict:
    """What corpus.json says. Raises UserError where there is none, a damaged one, or one of another version."""
    file = path / "corpus.json"
    if not file.is_file():
        unfinished = " (its preparation did not finish: run it again)" if (path / "plan.json").is_file() else ""
        raise UserError(f"{path}: no corpus here{unfinished}; make one with pipelines/prepare_data.py")
    try:
        info = json.loads(file.read_text())
        info["version"], info["splits"], info["hash"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged ({error}): prepare the corpus again") from None
    if info["version"] != VERSION:
        raise UserError(f"{path}: corpus format {info['version']}, this ophio reads {VERSION}: prepare it again")
    return info


def _mapped_table(path: Path) -> pa.Table:
    """The record batches of a mapped Arrow file; the mapping outlives the file handle."""
    try:
        with pa.memory_map(str(path)) as file:
            return pa.ipc.open_file(file).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: damaged or missing ({error}): prepare the corpus again with overwrite=true") from None
