"""Makes a corpus from folders of structure files and .npz archives: parallel, and resumable after any interruption.

The inputs are cut into chunks; one chunk becomes one shard, written under a temporary name and renamed when complete. A
shard carries the list of what was rejected from its chunk, so a shard that exists never has to be looked at again. When
a process dies over a chunk, its inputs are read one by one, and only the one that kills its process is left out.
"""

import csv
import hashlib
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from tqdm import tqdm

from ophio.data import archive, folder
from ophio.data.corpus import VERSION, file_crc32, shard_path
from ophio.data.entry import RAGGED, SCALARS, SCHEMA, Entry, record_batch
from ophio.data.filters import Filters, accept
from ophio.data.folder import FolderOptions
from ophio.data.transforms import windows
from ophio.data.workers import Died, run_each
from ophio.errors import UserError
from ophio.files import write_whole

CHUNKS_WANTED = 64
LARGEST_CHUNK = 1024  # inputs per shard: a few MB of memory in each worker, and 1000 shards for a million chains
LONGEST_REASON = 300
READER_DIED = "reader died: the process that read it ended at once (out of memory, or a crash)"
INDEX = ["id", "origin", "split", "cluster30", "length", "checksum"]
INDEX_SCHEMA = pa.schema([*((name, SCALARS[name]) for name in INDEX), ("shard", pa.int32()), ("row", pa.int32())])

T = TypeVar("T")
Outcome = tuple[str, Entry | str]
"""What a chain is called in the report, and the chain or the reason of its rejection."""


@dataclass(frozen=True)
class Chunk:
    """Some of one input: file names relative to a folder, or entry numbers of an archive."""

    number: int
    path: Path
    items: Sequence[str] | Sequence[int]


@dataclass  # not frozen: OmegaConf checks values against it
class Settings:
    """All that decides what a corpus will contain, apart from the inputs. Raises UserError for a length below 1."""

    filters: Filters = field(default_factory=Filters)
    crop_length: int | None = None  # residues; longer chains are cut into pieces (`transforms.windows`)
    folder: FolderOptions = field(default_factory=FolderOptions)

    def __post_init__(self):
        if self.crop_length is not None and self.crop_length < 1:
            raise UserError(f"crop_length={self.crop_length}: give a number of residues, or null for whole chains")


def prepare(
    inputs: Sequence[Path],
    output: Path,
    settings: Settings,
    num_workers: int = 1,
    overwrite: bool = False,
) -> dict:
    """Writes, or finishes, the corpus at `output` and returns what its corpus.json says.

    Raises UserError when an input does not exist, when `output` holds something else, and when nothing passes;
    KeyboardInterrupt, what was done kept, after Ctrl-C.
    """
    if num_workers < 1:
        raise UserError(f"num_workers={num_workers}: give 1 or more")
    clusters = settings.folder.clusters
    archive.load.cache_clear()
    folder.read_clusters.cache_clear()
    if clusters:
        folder.read_clusters(clusters)  # a table that cannot be read is no fault of the single files
    chunks, files = list_inputs(inputs, output)
    inputs_hash = fingerprint([*files, clusters] if clusters else files)
    claim(output, {"version": VERSION, "inputs": inputs_hash, "settings": asdict(settings)}, overwrite)
    pending = [chunk for chunk in chunks if not shard_path(output, chunk.number).exists()]
    total, left = (sum(len(chunk.items) for chunk in some) for some in (chunks, pending))
    with tqdm(total=total, initial=total - left, unit="input") as progress:
        try:
            for chunk in _run(pending, output, settings, num_workers):
                progress.update(len(chunk.items))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{output}: run the same command again to go on") from None
    archive.load.cache_clear()
    return write_index(output, len(chunks), settings)


def list_inputs(inputs: Sequence[Path], output: Path) -> tuple[list[Chunk], list[Path]]:
    """The chunks of all inputs, and the files that they come from.

    Raises UserError for an input that is neither a folder nor an .npz file, or is empty.
    """
    chunks: list[Chunk] = []
    files: list[Path] = []
    for path in (path.resolve() for path in inputs):
        if path.is_dir():
            items: Sequence = folder.list_files(path, skip=output)
            files += [path / name for name in items]
        elif path.is_file() and path.suffix == ".npz":
            items = range(archive.num_entries(path))
            files.append(path)
        else:
            raise UserError(f"{path}: neither a folder nor an .npz file")
        if len(items) == 0:
            raise UserError(f"{path}: nothing in it")
        size = min(LARGEST_CHUNK, -(-len(items) // CHUNKS_WANTED))
        pieces = (items[start : start + size] for start in range(0, len(items), size))
        chunks += [Chunk(len(chunks) + k, path, piece) for k, piece in enumerate(pieces)]
    return chunks, files


def fingerprint(files: Iterable[Path]) -> str:
    """A hash of the names, sizes and times of the files: whether they are still those of an earlier run."""
    seen = hashlib.sha256()
    for file in files:
        status = file.lstat()
        seen.update(f"{folder.printable(str(file))} {status.st_size} {status.st_mtime_ns}\n".encode())
    return seen.hexdigest()


def claim(output: Path, plan: dict, overwrite: bool) -> None:
    """Makes `output` ready for `plan`: a new folder, or one that an earlier run of the same plan left.

    Raises UserError where it is, or holds, something else; with `overwrite`, a corpus in there is removed first.
    """
    file = output / "plan.json"
    plan = json.loads(json.dumps(plan, default=str))
    if file.is_file() and overwrite:
        shutil.rmtree(output)
    if file.is_file() and json.loads(file.read_text()) != plan:
        raise UserError(f"{output}: begun with other inputs or settings: give another output, or overwrite=true")
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file; output is a folder")
    if output.is_dir() and not file.is_file() and any(output.iterdir()):
        raise UserError(f"{output}: not empty, and not a corpus: give another output")
    (output / "shards").mkdir(parents=True, exist_ok=True)
    for leftover in (output / "shards").glob("*.tmp"):
        leftover.unlink()
    write_whole(file, json.dumps(plan, indent=1).encode())


def write_shard(chunk: Chunk, output: Path, settings: Settings) -> None:
    """Reads, filters, crops and stores one chunk."""
    store(chunk.number, [each for item in chunk.items for each in outcomes(chunk.path, item, settings)], output)


def salvage_shard(chunk: Chunk, output: Path, settings: Settings) -> None:
    """`write_shard` for a chunk with an input over which the process dies: each is first tried in a process apart."""
    trials = run_each(partial(_try, chunk.path, settings), chunk.items, num_workers=1)
    deadly = {item for item, result in trials if isinstance(result, Died)}
    found: list[Outcome] = []
    for item in chunk.items:
        found += [(_name(chunk.path, item), READER_DIED)] if item in deadly else outcomes(chunk.path, item, settings)
    store(chunk.number, found, output)


def _try(path: Path, settings: Settings, item: str | int) -> int:
    """The number of outcomes: what counts is to have lived to tell it."""
    return len(list(outcomes(path, item, settings)))


def store(number: int, found: Sequence[Outcome], output: Path) -> None:
    """Writes the shard of one chunk, its rejections included; it appears whole or not at all."""
    entries = [entry for _, entry in found if isinstance(entry, Entry)]
    rejected = [(name, reason) for name, reason in found if isinstance(reason, str)]
    schema = SCHEMA.with_metadata({"rejected": json.dumps(rejected)})
    file = shard_path(output, number)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(record_batch(entries))
    os.replace(temporary, file)


def outcomes(path: Path, item: str | int, settings: Settings) -> Iterator[Outcome]:
    """What becomes of every chain of one input; no input stops the preparation."""
    name, file = _name(path, item), path if isinstance(item, int) else path / item
    read = _attempt(lambda: _read(path, item, settings.folder), file)
    if isinstance(read, str):
        yield name, read
        return
    for chain, entry in read:
        shown = f"{name}: chain {chain}" if chain else name
        accepted = _attempt(partial(_accept, entry, settings.filters), file)
        if isinstance(accepted, str):
            yield shown, accepted
        else:
            yield from ((shown, piece) for piece in windows(accepted, settings.crop_length))


def _read(path: Path, item: str | int, options: FolderOptions) -> list[tuple[str, Entry | Exception]] | str:
    if isinstance(item, int):
        return [("", archive.read_entry(path, item))]
    return folder.unsuitable(path / item, options.max_megabytes) or folder.read_entries(path, item, options)


def _accept(entry: Entry | Exception, filters: Filters) -> Entry | str:
    if isinstance(entry, Exception):
        raise entry
    return accept(entry, filters)


def _name(path: Path, item: str | int) -> str:
    return f"{path.name}: {archive.load(path)['ids'][item]}" if isinstance(item, int) else folder.printable(item)


def _attempt(function: Callable[[], T], file: Path) -> T | str:
    """The result, or on one line the reason why there is none: a parser may throw anything at an unseen file."""
    try:
        return function()
    except UserError as error:
        reason = f"unreadable: {str(error).removeprefix(f'{file}: ')}"
    except Exception as error:
        reason = f"error: {type(error).__name__}: {error}"
    return folder.printable(" ".join(reason.split()))[:LONGEST_REASON]


def write_index(output: Path, num_shards: int, settings: Settings) -> dict:
    """Joins what the shards know into index.arrow, rejected.csv and corpus.json, whose content it returns.

    Raises UserError where no chain passed; rejected.csv is then there.
    """
    count: dict[str, Counter] = {"splits": Counter(), "origins": Counter(), "rejected": Counter()}
    residues, content = 0, hashlib.sha256()
    index = output / "index.arrow"
    with (
        pa.OSFile(str(index) + ".tmp", "wb") as sink,
        pa.ipc.new_file(sink, INDEX_SCHEMA) as writer,
        open(output / "rejected.csv", "w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file)
        table.writerow(["input", "reason"])
        for number in range(num_shards):
            batch, rejected = _read_scalars(shard_path(output, number))
            table.writerows(rejected)
            count["rejected"].update(reason.split(":")[0] for _, reason in rejected)
            count["splits"].update(batch["split"].to_pylist())
            count["origins"].update(batch["origin"].to_pylist())
            residues += sum(batch["length"].to_pylist())
            content.update(batch["checksum"].to_numpy().tobytes())
            place = {"shard": [number] * batch.num_rows, "row": range(batch.num_rows)}
            columns = [batch[name] for name in INDEX] + [pa.array(place[name], pa.int32()) for name in place]
            writer.write_batch(pa.record_batch(columns, schema=INDEX_SCHEMA))
    os.replace(str(index) + ".tmp", index)
    entries = count["splits"].total()
    if entries == 0:
        raise UserError(f"no chain passed: the reasons are in {output / 'rejected.csv'}")
    info = {"version": VERSION, "entries": entries, "residues": residues, "hash": content.hexdigest()}
    info |= {name: dict(counter.most_common()) for name, counter in count.items()}
    info |= {"index_crc32": file_crc32(index), "checked": list(RAGGED), "settings": asdict(settings)}
    write_whole(output / "corpus.json", json.dumps(info, indent=1, default=str).encode())
    return info


def _run(chunks: Sequence[Chunk], output: Path, settings: Settings, num_workers: int) -> Iterator[Chunk]:
    """Writes the shards. Warnings about single files would tear the progress bar; what matters is in the report."""
    write = partial(write_shard, output=output, settings=settings)
    if num_workers <= 1:
        for chunk in chunks:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                write(chunk)
            yield chunk
        return
    for chunk, result in run_each(write, chunks, num_workers):
        if isinstance(result, Died):
            salvage_shard(chunk, output, settings)
        yield chunk


def _read_scalars(path: Path) -> tuple[pa.RecordBatch, list[list[str]]]:
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        return reader.get_batch(0), json.loads(reader.schema.metadata[b"rejected"])
