"""Chains from a folder of structure files."""

import gzip
import os
import zlib
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from ophio.data.entry import Entry, stable_hash
from ophio.errors import UserError
from ophio.io import SUFFIXES, read_chains, read_structure, without_gz
from ophio.protein import Protein

SPLITS = ("train", "val", "test")


class Chains(str, Enum):
    """Which protein chains of a file to take."""

    all = "all"
    first = "first"


@dataclass  # not frozen: OmegaConf checks values against it
class FolderOptions:
    """What structure files do not tell. `clusters` is a file of lines "cluster<TAB>entry or file name without suffix";
    without it every entry is a cluster of its own. `split` gives each part's share of the clusters.

    Raises UserError for shares of other splits than train, val and test, below 0, or all 0.
    """

    chains: Chains = Chains.all
    origin: str = "unknown"
    clusters: Path | None = None
    split: dict[str, float] = field(default_factory=lambda: {"train": 0.9, "val": 0.05, "test": 0.05})
    max_megabytes: float = 50.0  # uncompressed

    def __post_init__(self):
        shares = list(self.split.values())
        if set(self.split) - set(SPLITS) or any(share < 0 for share in shares) or not sum(shares) > 0:
            raise UserError(f"folder.split={self.split}: give shares of {', '.join(SPLITS)}, none below 0")


def unsuitable(file: Path, max_megabytes: float) -> str | None:
    """Why the file need not be parsed at all, as "category: detail"; None for a structure file of the allowed size."""
    if not file.is_file():
        return "not a file: a special file, a link to nothing, or a folder that may not be read"
    suffix = Path(without_gz(file.name)).suffix.lower()
    if suffix not in SUFFIXES:
        return f"not a structure file: {suffix or 'no suffix'} is none of {' '.join(SUFFIXES)}, with or without .gz"
    if is_larger(file, max_megabytes):
        return f"size: larger than max_megabytes={max_megabytes:g}"
    return None


def read_entries(root: Path, relative: str, options: FolderOptions) -> list[tuple[str, Entry | Exception]]:
    """The chosen chains of a file: chain id, and the entry or why there is none. Errors of the whole file are raised.

    Residues that are not standard amino acids are masked, so that chains can be cut there.
    """
    file, failed = root / relative, []
    if options.chains == Chains.first:
        proteins = [read_structure(file, skip_nonstandard=True)]
    else:
        proteins = read_chains(file, skip_nonstandard=True, on_error=lambda *reason: failed.append(reason))
    return [(protein.chain_id, _entry(protein, printable(relative), options)) for protein in proteins] + failed


def _entry(protein: Protein, source: str, options: FolderOptions) -> Entry:
    name = printable(protein.name)
    identity = f"{name}_{protein.chain_id}" if protein.chain_id else name
    members = read_clusters(options.clusters) if options.clusters else {}
    cluster = members.get(identity, members.get(name, f"{source} {protein.chain_id}"))
    number = stable_hash(cluster)
    return Entry(
        protein,
        id=identity,
        source=source,
        origin=options.origin,
        split=split_of(number, options.split),
        cluster30=number,
    )


@lru_cache(maxsize=1)
def read_clusters(file: Path) -> dict[str, str]:
    """Cluster of each entry ("1abc_A") or file ("1abc"): the table that `mmseqs easy-cluster` writes.

    The table of the last call stays in memory. Raises UserError where it cannot be read, or a line has not two columns.
    """
    try:
        lines = [line.split() for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as a table of clusters ({error})") from error
    if wrong := [number for number, fields in enumerate(lines, start=1) if len(fields) != 2]:
        raise UserError(f"{file}: line {wrong[0]}: expected a cluster and a member, separated by a tab")
    return {member: cluster for cluster, member in lines}


def is_larger(file: Path, megabytes: float) -> bool:
    """Whether the file, unpacked, exceeds the limit (of 10^6 bytes each); unpacks no more than needed to know.

    Raises UserError at a damaged gzip file.
    """
    limit = int(megabytes * 1e6)
    if file.suffix.lower() != ".gz" or file.stat().st_size > limit:
        return file.stat().st_size > limit
    try:
        with gzip.open(file) as stream:
            size = 0
            while size <= limit and (data := stream.read(1 << 20)):
                size += len(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"damaged gzip file ({error})") from error
    return size > limit


def list_files(root: Path, skip: Path) -> list[str]:
    """All files below `root`, relative to it and sorted, except those of the folder `skip`. A folder that may not be
    entered stands for itself, so that it will be reported."""
    skip = skip.resolve()
    found: list[str] = []

    def report(error: OSError) -> None:
        found.append(os.path.relpath(error.filename, root))

    for folder, subfolders, files in os.walk(root, onerror=report):
        subfolders[:] = [name for name in subfolders if (Path(folder) / name).resolve() != skip]
        found += [os.path.relpath(os.path.join(folder, name), root) for name in files]
    return sorted(found)


def split_of(cluster: int, shares: dict[str, float]) -> str:
    """A split that depends on nothing but the cluster and the shares."""
    position = stable_hash(str(cluster)) / 2**63 * sum(shares.values())
    ends = dict(zip(shares, accumulate(shares.values()), strict=True))
    return next((name for name, end in ends.items() if position < end), list(ends)[-1])


def printable(name: str) -> str:
    """A file name as valid text, whatever bytes it is made of."""
    return name.encode("utf-8", "backslashreplace").decode()
