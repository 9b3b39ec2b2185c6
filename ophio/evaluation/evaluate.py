"""A folder of structures -> a record of each, and of controls; goes on after an interruption.

REPORT/settings.json         the protocol; a report holds records of one kind
REPORT/records.jsonl         one line a structure: samples, natives, mirror images, noised; those that failed, too
REPORT/controls/GROUP/       the structures of the controls
REPORT/novelty.json          the most similar reference of each sample
"""

import json
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import OutOfMemoryError
from tqdm import tqdm

from ophio.data.workers import Died, run_each
from ophio.errors import UserError
from ophio.evaluation.folding import FoldingEngine, load_engine
from ophio.evaluation.inverse_folding import ProteinMPNN
from ophio.evaluation.self_consistency import Protocol, self_consistency
from ophio.evaluation.structures import (
    GROUPS,
    LONGEST,
    SAMPLES,
    SHORTEST,
    Item,
    choose_natives,
    generation_records,
    read_backbone,
    read_chain,
    structure_files,
    write_controls,
)
from ophio.files import content_hash, write_whole
from ophio.io import list_chains
from ophio.protein import Protein
from ophio.samples import claim
from ophio.sampling import report_of

VERSION = 1  # of what scores mean: records of another version are not mixed with new ones
RECORDS = "records.jsonl"
REJECTED = "rejected"  # a file without a structure that can be evaluated: no sample
FAILED = "failed"  # a sample that could not be evaluated
NEVER_MADE = "never made"  # a sample that sampling gave up


@dataclass(frozen=True)
class Job:
    """What a process needs to make one record."""

    item: Item
    protocol: Protocol
    device: str
    folder: Path


@dataclass(frozen=True)
class Evaluation:
    """Everything needed to fill a report with records; `prepare` makes it."""

    folder: Path
    samples: Path
    items: list[Item]  # of samples, then of controls
    absent: list[dict]  # records of samples without a structure to evaluate
    unknown: list[str]  # files in the folder of samples that are no structures
    protocol: Protocol
    device: str
    controls: Path | None  # where native controls come from
    origins: Sequence[str]  # of those

    def fill(self, num_workers: int = 1) -> list[dict]:
        """Makes the records that the report does not have yet, `num_workers` at a time, and returns those of all items.

        A record is written as soon as it is made. What is there for the same file content is kept; what failed is tried
        again. Raises UserError for less than one worker.
        """
        if num_workers < 1:
            raise UserError(f"workers {num_workers}: give a number of processes, at least 1")
        done = {_key(record) for record in _records(self.folder) if "failed" not in record}
        waiting = [item for item in self.items if (item.group, item.name, content_hash(item.path)) not in done]
        jobs = [Job(item, self.protocol, self.device, self.folder) for item in waiting]
        try:
            with closing(_results(jobs, num_workers)) as results:
                for _ in tqdm(results, total=len(jobs), unit="structure", disable=None, leave=False):
                    pass
        finally:
            _collect(self.folder)
        found = _newest(self.folder)
        made = [found[item.group, item.name] for item in self.items]
        return sorted(made + self.absent, key=lambda record: GROUPS.index(record["group"]))


def prepare(
    samples: Path,
    folder: Path,
    protocol: Protocol,
    num: int | None = None,
    lengths: tuple[int, int] = (SHORTEST, LONGEST),
    controls: Path | None = None,
    num_controls: int = 20,
    origins: Sequence[str] = (),
    device: str = "cpu",
) -> Evaluation:
    """Reads the samples, chooses controls of the same lengths, and claims the folder of the report.

    Args:
        samples: folder of structure files; the first `num` by name are evaluated.
        controls: a corpus, of which the test split serves, or a folder of native structures. None: mirror images and
            noised versions of samples stand in, and there is no native ceiling.
        num_controls: natives at most, each with its mirror image and its noised version; 0 for none.
        origins: of the chains of a corpus: designed, natural, predicted; empty: all.

    Files that cannot be evaluated are among `absent`, each with the reason. Raises UserError where none can be, and for
    options that make no sense, before anything is written.
    """
    _check(samples, folder, num, lengths, num_controls)
    files, unknown = structure_files(samples)
    never_made = _never_made(samples, num)
    proteins, absent = _read_all(files[: None if num is None else num - len(never_made)], lengths)
    absent += never_made
    if not proteins:
        raise UserError(f"{samples}: none of {len(absent)} samples can be evaluated; the first: {absent[0]['failed']}")
    _load(protocol, device)  # a missing package or a wrong name is known now
    originals = _originals(proteins, lengths, controls, num_controls, origins, protocol.seed)
    claim(folder, {"version": VERSION, **asdict(protocol)}, "scores")
    items = [Item(SAMPLES, path.name, path) for path in proteins]
    items += write_controls(folder / "controls", originals, controls is not None, protocol.seed)
    names = [path.name for path in unknown]
    return Evaluation(folder, samples, items, absent, names, protocol, device, controls, tuple(origins))


def evaluate_item(job: Job) -> dict:
    """The record of one structure, which is also appended to the records of this process. Failures are records, too."""
    started = time.perf_counter()
    record: dict[str, Any] = {"group": job.item.group, "name": job.item.name, "content": content_hash(job.item.path)}
    try:
        protein = read_chain(job.item.path)
        record |= {"length": protein.num_residues, "chains": len(list_chains(job.item.path))}
        record |= {key: _number(value) for key, value in report_of(protein).items()}
        record |= self_consistency(protein, *_load(job.protocol, job.device), job.protocol)
    except (MemoryError, OutOfMemoryError):
        record |= {"failed": "not enough memory on this device", "kind": FAILED}
    except Exception as error:  # of any kind: one structure must not stop the others
        record |= {"failed": _reason(error, job.item.path), "kind": FAILED}
    record["seconds"] = round(time.perf_counter() - started, 3)
    _append(job.folder, record)
    return record


@cache
def _load(protocol: Protocol, device: str) -> tuple[ProteinMPNN, FoldingEngine]:
    """Once a process."""
    engine = load_engine(protocol.engine, device, protocol.engine_weights, protocol.networks, protocol.starts)
    return ProteinMPNN(protocol.mpnn_weights, device=device), engine


def _results(jobs: Sequence[Job], num_workers: int) -> Generator[dict, None, None]:
    if num_workers == 1 or len(jobs) < 2:
        yield from map(evaluate_item, jobs)
        return
    for job, result in run_each(evaluate_item, jobs, num_workers):
        if isinstance(result, Died):
            what = {"failed": "its process died, perhaps of too little memory", "kind": FAILED, "seconds": None}
            result = {"group": job.item.group, "name": job.item.name, "content": content_hash(job.item.path)} | what
            _append(job.folder, result)
        yield result


def _check(samples: Path, folder: Path, num: int | None, lengths: tuple[int, int], num_controls: int) -> None:
    if folder.absolute() == samples.absolute():
        raise UserError(f"{folder}: holds the samples: give another folder for the report")
    if num is not None and num < 1:
        raise UserError(f"num={num}: give a number of samples, at least 1")
    if not 3 < lengths[0] <= lengths[1]:
        raise UserError(f"lengths {lengths[0]}-{lengths[1]}: give a rising range of residues, from 4 on")
    if num_controls < 0:
        raise UserError(f"controls {num_controls}: give a number of chains, 0 for none")


def _read_all(files: Sequence[Path], lengths: tuple[int, int]) -> tuple[dict[Path, Protein], list[dict]]:
    """The chains by file, and records of the files that have none to evaluate."""
    proteins, rejected = {}, []
    for path in tqdm(files, unit="file", disable=None, leave=False):
        try:
            proteins[path] = read_backbone(path, lengths)
        except UserError as error:
            rejected.append(_absent(path.name, _reason(error, path), REJECTED))
    return proteins, rejected


def _never_made(samples: Path, num: int | None) -> list[dict]:
    """Records of samples, among the first `num`, that sampling gave up."""
    lost = [record for record in generation_records(samples)[:num] if "failed" in record]
    return [_absent(record["name"], record["failed"], NEVER_MADE) for record in lost]


def _absent(name: str, reason: str, kind: str) -> dict:
    return {"group": SAMPLES, "name": name, "failed": reason, "kind": kind}


def _originals(
    proteins: dict[Path, Protein],
    lengths: tuple[int, int],
    controls: Path | None,
    num: int,
    origins: Sequence[str],
    seed: int,
) -> list[Protein]:
    """Chains to make controls of: natives, or some of the samples themselves.

    Natives have lengths of samples, or where there is none of these, any that is evaluated.
    """
    if num == 0:
        return []
    if controls is not None:
        sizes = [protein.num_residues for protein in proteins.values()]
        try:
            return choose_natives(controls, num, (min(sizes), max(sizes)), origins, seed)
        except UserError:
            return choose_natives(controls, num, lengths, origins, seed)
    chains = list(proteins.values())
    return [chains[k] for k in np.random.default_rng(seed).permutation(len(chains))[:num].tolist()]


def _number(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def _reason(error: Exception, path: Path) -> str:
    text = " ".join(str(error).split()).removeprefix(f"{path}: ")
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def complaint(record: Mapping, samples: Path) -> str:
    """One line about a structure that could not be evaluated."""
    where = samples / record["name"] if record["group"] == SAMPLES else f"{record['group']} {record['name']}"
    return f"{where}: {record['failed']}"


# Files


def read_records(folder: Path) -> list[dict]:
    """Of the samples in a report, those that could be evaluated, by name; also of an unfinished one.

    Raises UserError where there are none.
    """
    found = [
        record for (group, _), record in sorted(_newest(folder).items()) if group == SAMPLES and "failed" not in record
    ]
    if not found:
        raise UserError(f"{folder}: no report of samples here; make it with `ophio evaluate`")
    return found


def _append(folder: Path, record: dict) -> None:
    """To a file of this process, in one write: no other process can come in between."""
    with open(folder / f"{RECORDS}.part{os.getpid()}", "ab", buffering=0) as log:
        log.write(b"\n" + json.dumps(record).encode() + b"\n")  # the first ends a line that a crash cut off


def _records(folder: Path) -> Iterator[dict]:
    """Later ones replace earlier ones. A line cut off by a crash is passed over."""
    for path in [folder / RECORDS, *sorted(folder.glob(f"{RECORDS}.part*"), key=lambda path: path.stat().st_mtime)]:
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            yield record


def _newest(folder: Path) -> dict[tuple[str, str], dict]:
    """The newest record of each structure, by group and name."""
    return {_key(record)[:2]: record for record in _records(folder)}


def _key(record: dict) -> tuple[str, str, str]:
    return record["group"], record["name"], record["content"]


def _collect(folder: Path) -> None:
    """One file of records, the newest of each structure."""
    parts = list(folder.glob(f"{RECORDS}.part*"))
    newest = _newest(folder)
    lines = (json.dumps(newest[key]) + "\n" for key in sorted(newest))
    write_whole(folder / RECORDS, "".join(lines).encode())
    for part in parts:
        part.unlink()
