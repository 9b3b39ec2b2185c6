"""Structures to evaluate: the files of a folder, which of them can be evaluated, and controls to compare them with."""

import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from ophio.constants import CA, C, N, O
from ophio.data.corpus import Corpus
from ophio.errors import UserError
from ophio.io import SUFFIXES, StructureWarning, read_structure, write_structure
from ophio.protein import Protein

SHORTEST, LONGEST = 20, 512  # residues: folding means little below, and takes too much above
NOISE = 1.5  # Å, standard deviation of each coordinate
SAMPLES, NATIVES, MIRRORS, NOISED = "samples", "natives", "mirrors", "noised"
GROUPS = (SAMPLES, NATIVES, MIRRORS, NOISED)
COMPANIONS = {
    "samples.jsonl",
    "samples.fasta",
    "settings.json",
    "selection.csv",
    "index.html",
}  # that a folder of samples has beside structures


@dataclass(frozen=True)
class Item:
    """A structure file: what it is for (one of GROUPS), and what the records call it."""

    group: str
    name: str
    path: Path


def structure_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The structure files of a folder, by name, and the others (but for what `ophio sample` and `ophio select` write with them).

    Raises UserError where there is no folder, or no structure in it.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder}: not a folder that can be read ({error.strerror})") from None
    suffixes = (*SUFFIXES, *(f"{suffix}.gz" for suffix in SUFFIXES))
    structures = [path for path in files if path.name.lower().endswith(suffixes)]
    if not structures:
        raise UserError(f"{folder}: no structure in this folder: give one with {', '.join(SUFFIXES)} files, also .gz")
    return structures, [path for path in files if path not in structures and path.name not in COMPANIONS]


def files_of(folders: str | Sequence[str] | None) -> list[Path]:
    """The structure files of one folder or several, by name, as a pipeline's options give them; none of None."""
    listed = [folders] if isinstance(folders, str) else folders or []
    return [file for folder in listed for file in structure_files(Path(folder))[0]]


def read_chain(path: Path) -> Protein:
    """The first protein chain of a file, without warnings: scores and records tell of breaks and of further chains."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StructureWarning)
        return read_structure(path)


def read_backbone(path: Path, lengths: tuple[int, int]) -> Protein:
    """The first protein chain of a file, with N, CA, C and O of every residue.

    Raises UserError that names the file where it cannot be evaluated: no protein, only CA atoms, residues or atoms
    missing, a length outside of `lengths`.
    """
    protein = read_chain(path)
    check_backbone(protein, str(path), lengths)
    return protein


def check_backbone(protein: Protein, where: str, lengths: tuple[int, int]) -> None:
    """Raises UserError where a chain cannot be evaluated."""
    if not lengths[0] <= protein.num_residues <= lengths[1]:
        limits = f"chains of {lengths[0]} to {lengths[1]} residues are evaluated (--lengths)"
        raise UserError(f"{where}: {protein.num_residues} residues; {limits}")
    present = protein.atom_mask[:, [N, CA, C, O]] & protein.residue_mask[:, None]
    incomplete = (~present.all(-1)).nonzero().flatten().tolist()
    if incomplete:
        number = int(protein.residue_number[incomplete[0]])
        what = f"residue {number} lacks backbone atoms ({len(incomplete)} such residues)"
        raise UserError(f"{where}: {what}: evaluation needs N, CA, C and O of every residue")


def generation_records(folder: Path) -> list[dict]:
    """What `ophio sample` wrote of its samples, those without a structure included; [] for other folders.

    Raises UserError where the file of them is damaged.
    """
    try:
        lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'samples.jsonl'}: damaged ({error}): remove it, or sample again") from None


# Controls


def mirrored(protein: Protein) -> Protein:
    """The mirror image: no protein of L-amino acids folds like this."""
    return protein.with_positions(protein.positions * torch.tensor([-1.0, 1.0, 1.0]))


def noised(protein: Protein, seed: int) -> Protein:
    """Every coordinate of every atom displaced by normal noise of 1.5 Å."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(protein.positions.shape, generator=generator)
    return protein.with_positions(protein.positions + NOISE * noise)


def choose_natives(
    source: Path, num: int, lengths: tuple[int, int], origins: Sequence[str] = (), seed: int = 0, split: str = "test"
) -> list[Protein]:
    """Chains to compare samples with: of a split of a corpus, one a cluster, or of a folder of structure files.

    `num` at most, within `lengths` and with complete backbones, drawn by `seed`. Raises UserError where there is none.
    """
    chains = (
        _corpus_chains(source, lengths, origins, seed, split)
        if is_corpus(source)
        else _folder_chains(source, lengths, seed)
    )
    chosen = list(islice(chains, num))
    if not chosen:
        raise UserError(f"{source}: no complete chain of {lengths[0]} to {lengths[1]} residues to serve as a control")
    return chosen


def write_controls(folder: Path, originals: Sequence[Protein], natives: bool, seed: int) -> list[Item]:
    """Files of the originals (where they are `natives`), their mirror images and noised versions, under `folder`."""
    items = []
    for k, protein in enumerate(originals):
        versions = {NATIVES: protein} if natives else {}
        versions |= {MIRRORS: mirrored(protein), NOISED: noised(protein, seed + k)}
        for group, version in versions.items():
            path = folder / group / f"{k + 1:03d}_{file_name(protein.name)}.cif"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_structure(version, path)
            items.append(Item(group, path.name, path))
    return sorted(items, key=lambda item: GROUPS.index(item.group))


def comparable_traces(source: Path, lengths: tuple[int, int], origins: Sequence[str] = ()) -> list[torch.Tensor]:
    """CA traces (Å) of all chains that `choose_natives` draws from, but of every chain of a cluster."""
    if is_corpus(source):
        corpus = Corpus(source, "test", *lengths, origins)
        chains = (corpus[k] for k in range(len(corpus)))
    else:
        chains = _readable(structure_files(source)[0])
    return [chain.ca for chain in chains if _fits(chain, lengths)]


def reference_traces(source: Path) -> tuple[list[torch.Tensor], list[str]]:
    """CA traces (Å) and names of the training split of a corpus, or of the readable files of a folder of structures.

    Raises UserError where none has three residues.
    """
    if is_corpus(source):
        corpus = Corpus(source, "train")
        chains = (corpus[k] for k in range(len(corpus)))
    else:
        chains = _readable(structure_files(source)[0])
    traces = [(chain.ca[chain.residue_mask], chain.name) for chain in chains]
    traces = [(trace, name) for trace, name in traces if len(trace) >= 3]
    if not traces:
        raise UserError(f"{source}: no chain to compare with")
    return [trace for trace, _ in traces], [name for _, name in traces]


def source_hash(source: Path) -> str:
    """Changes with the content of a corpus, or with names and sizes of the files of a folder."""
    if is_corpus(source):
        return Corpus(source).info["hash"]
    listed = [(path.name, path.stat().st_size) for path in structure_files(source)[0]]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def is_corpus(source: Path) -> bool:
    """Whether a folder holds a corpus whose preparation has ended; otherwise it is one of structure files."""
    return (source / "corpus.json").is_file()


def _corpus_chains(
    source: Path, lengths: tuple[int, int], origins: Sequence[str], seed: int, split: str
) -> Iterator[Protein]:
    corpus, seen = Corpus(source, split, *lengths, origins), set()
    for k in np.random.default_rng(seed).permutation(len(corpus)).tolist():
        chain = corpus[k]
        if int(corpus.clusters[k]) not in seen and _fits(chain, lengths):
            seen.add(int(corpus.clusters[k]))
            yield chain


def _folder_chains(source: Path, lengths: tuple[int, int], seed: int) -> Iterator[Protein]:
    files = structure_files(source)[0]
    order = np.random.default_rng(seed).permutation(len(files)).tolist()
    return (chain for chain in _readable([files[k] for k in order]) if _fits(chain, lengths))


def _readable(files: Sequence[Path]) -> Iterator[Protein]:
    for path in files:
        try:
            yield read_chain(path)
        except UserError:
            continue


def _fits(chain: Protein, lengths: tuple[int, int]) -> bool:
    try:
        check_backbone(chain, chain.name, lengths)
    except UserError:
        return False
    return True


def file_name(name: str) -> str:
    """A chain's name as part of a file's: _ for whatever is no letter, digit, dot or hyphen."""
    return re.sub(r"[^\w.-]", "_", name)
