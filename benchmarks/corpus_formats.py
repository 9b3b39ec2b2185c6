"""Formats for a corpus on disk, compared on the same chains: random and sequential reads, size, memory.

    pip install zarr litdata webdataset            # for this comparison only
    python benchmarks/corpus_formats.py ARCHIVE.npz [--out benchmarks/corpus_formats.md]

What is read are the five ragged columns of `ophio.data.entry`, as NumPy arrays; every byte is touched. Files are in the
page cache (they were just written), so the numbers show each format's own cost, not the disk's.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ophio.data import archive
from ophio.data.corpus import Shard
from ophio.data.entry import RAGGED, SCHEMA, record_batch

SECONDS = 3.0
GROUP = 64  # chains in a Parquet row group or a zarr chunk: small enough for random access, large enough to compress
SHARD = 1024
Row = list[np.ndarray]


class Reader(Protocol):
    def read(self, index: int) -> Row: ...
    def scan(self) -> Iterator[Row]: ...


class ArrowReader:
    """Arrow IPC, uncompressed, memory-mapped, one record batch per shard."""

    @staticmethod
    def write(batch: pa.RecordBatch, path: Path) -> None:
        for start in range(0, batch.num_rows, SHARD):
            with pa.ipc.new_file(str(path / f"{start // SHARD:05d}.arrow"), SCHEMA) as writer:
                writer.write_batch(pa.Table.from_batches([batch.slice(start, SHARD)]).combine_chunks().to_batches()[0])

    def __init__(self, path: Path):
        self.shards = [Shard(file) for file in sorted(path.iterdir())]
        self.count = sum(shard.batch.num_rows for shard in self.shards)

    def read(self, index: int) -> Row:
        shard, row = self.shards[index // SHARD], index % SHARD
        return [shard.values[name][slice(*shard.offsets[name][row : row + 2])] for name in RAGGED]

    def scan(self) -> Iterator[Row]:
        return (self.read(k) for k in range(self.count))


class ParquetReader:
    """Parquet, zstd, 64 chains per row group."""

    @staticmethod
    def write(batch: pa.RecordBatch, path: Path) -> None:
        table = pa.Table.from_batches([batch]).select(list(RAGGED))
        pq.write_table(table, path / "corpus.parquet", row_group_size=GROUP, compression="zstd")

    def __init__(self, path: Path):
        self.file = pq.ParquetFile(path / "corpus.parquet", memory_map=True)

    def read(self, index: int) -> Row:
        return self._row(self.file.read_row_group(index // GROUP, use_threads=False), index % GROUP)

    def scan(self) -> Iterator[Row]:
        for group in range(self.file.num_row_groups):
            table = self.file.read_row_group(group, use_threads=False)
            yield from (self._row(table, row) for row in range(table.num_rows))

    @staticmethod
    def _row(table: pa.Table, row: int) -> Row:
        return [table[name][row].values.to_numpy() for name in RAGGED]


class ZarrReader:
    """zarr 3, one array per column with zstd chunks of about 64 chains, offsets in memory."""

    @staticmethod
    def write(batch: pa.RecordBatch, path: Path) -> None:
        import zarr

        group = zarr.open_group(str(path), mode="w")
        for name in RAGGED:
            values, offsets = batch[name].flatten().to_numpy(), batch[name].offsets.to_numpy()
            chunk = max(1, len(values) * GROUP // batch.num_rows)
            for key, array, chunks in ((name, values, chunk), (f"{name}_offsets", offsets, len(offsets))):
                group.create_array(key, shape=array.shape, dtype=array.dtype, chunks=(chunks,))[:] = array

    def __init__(self, path: Path):
        import zarr

        group = zarr.open_group(str(path), mode="r")
        self.values = {name: group[name] for name in RAGGED}
        self.offsets = {name: group[f"{name}_offsets"][:] for name in RAGGED}
        self.count = len(self.offsets["atoms"]) - 1

    def read(self, index: int) -> Row:
        return [self.values[name][slice(*self.offsets[name][index : index + 2])] for name in RAGGED]

    def scan(self) -> Iterator[Row]:
        for start in range(0, self.count, GROUP):
            rows = {name: self.offsets[name][start : start + GROUP + 1] for name in RAGGED}
            blocks = {name: self.values[name][ends[0] : ends[-1]] for name, ends in rows.items()}
            for k in range(len(rows["atoms"]) - 1):
                yield [blocks[name][slice(*(ends[k : k + 2] - ends[0]))] for name, ends in rows.items()]


class LitdataReader:
    """litdata, uncompressed chunks of 1024 chains."""

    @staticmethod
    def write(batch: pa.RecordBatch, path: Path) -> None:
        from litdata.streaming.cache import Cache

        cache = Cache(str(path), chunk_size=SHARD)
        for row in range(batch.num_rows):
            cache[row] = [batch[name][row].values.to_numpy() for name in RAGGED]
        cache.done()
        cache.merge()

    def __init__(self, path: Path):
        from litdata import StreamingDataset

        self.dataset = StreamingDataset(str(path))

    def read(self, index: int) -> Row:
        return self.dataset[index]

    def scan(self) -> Iterator[Row]:
        return iter(self.dataset)


class WebdatasetReader:
    """webdataset, tar files of 1024 chains, one member per chain; a stream without random access."""

    @staticmethod
    def write(batch: pa.RecordBatch, path: Path) -> None:
        import webdataset

        with webdataset.ShardWriter(str(path / "%05d.tar"), maxcount=SHARD, verbose=0) as writer:
            for row in range(batch.num_rows):
                columns = [batch[name][row].values.to_numpy() for name in RAGGED]
                header = np.array([len(column) for column in columns]).tobytes()
                data = header + b"".join(column.tobytes() for column in columns)
                writer.write({"__key__": f"{row:08d}", "bin": data})

    def __init__(self, path: Path):
        import webdataset

        files = [str(file) for file in sorted(path.iterdir())]
        self.dataset = webdataset.WebDataset(files, shardshuffle=False)

    def scan(self) -> Iterator[Row]:
        dtypes = list(RAGGED.values())
        for sample in self.dataset:
            data, row = sample["bin"], []
            start = 8 * len(dtypes)
            for length, dtype in zip(np.frombuffer(data, np.int64, len(dtypes)), dtypes, strict=True):
                row.append(np.frombuffer(data, dtype, length, start))
                start += length * dtype.itemsize
            yield row


READERS = [ArrowReader, ParquetReader, ZarrReader, LitdataReader, WebdatasetReader]


def in_processes(function: Callable, arguments: list[tuple]) -> list:
    """Runs each call in a fresh process, all at once."""
    with multiprocessing.get_context("spawn").Pool(len(arguments), maxtasksperchild=1) as pool:
        return pool.starmap(function, arguments, chunksize=1)


def random_reads(reader_class: type, path: Path, count: int, seed: int) -> tuple[float, float]:
    """(reads per second, MB of private memory gained meanwhile) of one process."""
    reader = reader_class(path)
    order = np.random.default_rng(seed).integers(count, size=1_000_000).tolist()
    [_touch(reader.read(k)) for k in order[:20]]
    before, start, reads = _private_megabytes(), time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        _touch(reader.read(order[reads]))
        reads += 1
    return reads / (time.perf_counter() - start), _private_megabytes() - before


def sequential(reader_class: type, path: Path) -> float:
    """MB of columns per second in one pass."""
    reader = reader_class(path)
    start = time.perf_counter()
    total = sum(_touch(row) for row in reader.scan())
    return total / 1e6 / (time.perf_counter() - start)


def measure(reader_class: type, batch: pa.RecordBatch) -> str:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        reader_class.write(batch, path)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
        rates, memory = ["no"] * 2, "-"
        if hasattr(reader_class, "read"):
            runs = [
                in_processes(random_reads, [(reader_class, path, batch.num_rows, k) for k in range(n)]) for n in (1, 2)
            ]
            rates = [f"{sum(rate for rate, _ in run):,.0f}" for run in runs]
            memory = f"{runs[0][0][1]:.0f}"
        (stream,) = in_processes(sequential, [(reader_class, path)])
    return f"| {reader_class.__doc__.rstrip('.')} | {rates[0]} | {rates[1]} | {stream:,.0f} | {size:.0f} | {memory} |"


def _touch(row: Row) -> int:
    for column in row:
        column.sum()
    return sum(column.nbytes for column in row)


def _private_megabytes() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--count", type=int, default=10_000, help="chains")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    count = min(args.count, archive.num_entries(args.archive))
    batch = record_batch([archive.read_entry(args.archive, k) for k in range(count)])
    lines = [
        f"{count:,} chains, {batch.nbytes / 1e6:.0f} MB of columns; {os.cpu_count()} cores; made by "
        "`benchmarks/corpus_formats.py`. Files in the page cache.",
        "",
        "| format | random reads/s, 1 process | 2 processes | sequential MB/s | MB on disk | private MB gained |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(measure(reader_class, batch) for reader_class in READERS),
    ]
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
