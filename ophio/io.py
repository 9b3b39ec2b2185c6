"""PDB, mmCIF and BinaryCIF files, each also gzipped <-> `Protein`. Parsing and formatting are biotite's."""

import gzip
import re
import warnings
import zlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, StringIO
from itertools import pairwise
from pathlib import Path

import msgpack
import numpy as np
import torch
from biotite.structure import AtomArray, concatenate, get_residue_starts
from biotite.structure.io import pdbx
from biotite.structure.io.pdb import PDBFile
from jaxtyping import Bool, Float, Int

from ophio.constants import ATOM14, CA, CHAIN_BREAK_CA, CHAIN_BREAK_CN, NUM_SLOTS, RESIDUE_NAMES, TYPE_OF, UNKNOWN
from ophio.errors import UserError
from ophio.files import write_whole
from ophio.protein import NO_INSERTION, Protein

_FORMATS = {".pdb": "PDB", ".ent": "PDB", ".cif": "mmCIF", ".mmcif": "mmCIF", ".bcif": "BinaryCIF"}
SUFFIXES = tuple(_FORMATS)
_SUFFIX_HINT = "use .pdb, .ent, .cif, .mmcif or .bcif, each with or without .gz"

_SAME_AMINO_ACID = {
    "MSE": "MET", "HSD": "HIS", "HSE": "HIS", "HSP": "HIS", "HID": "HIS", "HIE": "HIS", "HIP": "HIS",
    "CYX": "CYS", "CYM": "CYS", "ASH": "ASP", "GLH": "GLU", "LYN": "LYS",
}  # fmt: skip
"""Selenomethionine, and the protonation states that force fields name."""

_OTHER_ATOM_NAMES = {"ILE": {"CD": "CD1"}, "MET": {"SE": "SD"}}
_TERMINAL_OXYGENS = ("OT1", "OC1", "O1")  # what force fields call O in the last residue

_WATERS = {"HOH", "WAT", "SOL", "TIP", "DOD", "H2O", "SPC"}

_CIF_DEFAULTS = {
    "group_PDB": "ATOM", "type_symbol": "X", "label_alt_id": ".", "pdbx_PDB_ins_code": "", "pdbx_PDB_model_num": 1,
    "occupancy": 1.0, "B_iso_or_equiv": 0.0,
}  # fmt: skip
"""Columns of atom_site that programs leave out and biotite asks for."""

_LONGEST_LINE = 2048  # of mmCIF, as CIF 1.1 limits it
_LONGEST_VALUE = 128  # characters of a name in atom_site: arrays give every row the room of the longest
_UNPACKED = 2**28  # bytes; a gzip file may unpack to more only by less than a hundred times its size


_Model = str | pdbx.CIFBlock | pdbx.BinaryCIFBlock
"""One model of a file: PDB lines, or a data block with nothing else."""


class StructureWarning(UserWarning):
    """The file was read, but not everything in it was taken or is as it should be."""


# ------------------------------------------------------------------------------------------------------------- reading


def read_structure(
    path: str | Path, chain: str | None = None, model: int = 1, skip_nonstandard: bool = False
) -> Protein:
    """One protein chain of one model.

    Chains and residues carry the author's names, as in PDB files; a blank chain id is "". `chain` defaults to the first
    chain with a standard amino acid, `model` counts from 1 in the order of the file (frames that only END separates
    count, too).

    Kept are the heavy atoms of the 20 amino acids (MSE is MET; protonation states of force fields are the amino acid);
    waters, ligands, caps, hydrogens and OXT are dropped. Of alternate locations, each residue takes one letter with the
    unlabelled atoms: that of highest mean occupancy (the first on a tie), among letters with a CA where some have none.
    Atoms of zero occupancy count as present. A residue without CA keeps its atoms, but `Protein.residue_mask` hides it
    from models. `skip_nonstandard` keeps a non-standard residue of the chain as a masked `UNKNOWN` without atoms.

    Raises:
        UserError: the file cannot be read, the chain or model is absent, there are only CA atoms, or a residue is
            non-standard.

    Warns:
        StructureWarning: other protein chains were left aside, the chain has breaks, or an atom occurs twice.
    """
    path = Path(path)
    chains = _protein_chains(path, _open(path), model)
    chain_id = _chosen(path, chains, chain)
    return _take(path, f"{path}: chain {_shown(chain_id)}", chain_id, chains[chain_id], skip_nonstandard)


def read_chains(
    path: str | Path,
    model: int = 1,
    skip_nonstandard: bool = False,
    on_error: Callable[[str, Exception], None] | None = None,
) -> list[Protein]:
    """Every protein chain of one model, in the order of the file, which is parsed once; otherwise as `read_structure`.

    With `on_error`, a chain that cannot be taken is left out, and `on_error(chain_id, error)` is told; without it, the
    error is raised. An error of the whole file is always raised.
    """
    path = Path(path)
    proteins = []
    for chain_id, residues in _protein_chains(path, _open(path), model).items():
        try:
            proteins.append(_take(path, f"{path}: chain {_shown(chain_id)}", chain_id, residues, skip_nonstandard))
        except Exception as error:
            if on_error is None:
                raise
            on_error(chain_id, error)
    return proteins


def read_models(path: str | Path, chain: str | None = None, skip_nonstandard: bool = False) -> list[Protein]:
    """One protein chain in every model (NMR ensemble, trajectory) of a file, which is parsed once.

    `chain` defaults to the first protein chain of the first model. Models may differ in atoms and residues. Errors name
    the model; otherwise as `read_structure`.
    """
    path = Path(path)
    models = _open(path)
    proteins = []
    for number in range(1, len(models) + 1):
        chains = _protein_chains(path, models, number)
        where = f"{path}: model {number}" if len(models) > 1 else f"{path}"
        chain = _chosen(where, chains, chain)
        proteins.append(_take(path, f"{where}: chain {_shown(chain)}", chain, chains[chain], skip_nonstandard))
    return proteins


def list_chains(path: str | Path) -> list[str]:
    """Ids of the protein chains of the first model, in the order of the file."""
    path = Path(path)
    return list(_protein_chains(path, _open(path), model=1))


def num_models(path: str | Path) -> int:
    """Number of models in the file."""
    return len(_open(Path(path)))


@dataclass(frozen=True)
class _Residues:
    """L residues of a chain and their atoms, each atom in one conformer."""

    atoms: AtomArray
    residue: Int[np.ndarray, "atoms"]  # the residue of each atom
    name: list[str]  # as in the file
    number: Int[np.ndarray, "L"]
    insertion: list[str]
    hetero: Bool[np.ndarray, "L"]
    type: Int[np.ndarray, "L"]
    backbone: Float[np.ndarray, "L 3 3"]  # N, CA, C of standard and other residues; NaN where missing

    @classmethod
    def of(cls, atoms: AtomArray) -> "_Residues":
        starts = get_residue_starts(atoms)
        residue = np.repeat(np.arange(len(starts)), np.diff([*starts, atoms.array_length()]))
        backbone = np.full((len(starts), 3, 3), np.nan, dtype=np.float32)
        for k, name in enumerate(("N", "CA", "C")):
            here = np.flatnonzero(atoms.atom_name == name)[::-1]  # the first stays where an atom occurs twice
            backbone[residue[here], k] = atoms.coord[here]
        names = atoms.res_name[starts].tolist()
        return cls(
            atoms=atoms,
            residue=residue,
            name=names,
            number=atoms.res_id[starts],
            insertion=atoms.ins_code[starts].tolist(),
            hetero=atoms.hetero[starts],
            type=np.array([TYPE_OF.get(_SAME_AMINO_ACID.get(name, name), UNKNOWN) for name in names], dtype=np.int64),
            backbone=backbone,
        )

    def label(self, index: int) -> str:
        return f"{self.name[index]} {self.number[index]}{self.insertion[index]}"


def _protein_chains(path: Path, models: Sequence[_Model], model: int) -> dict[str, _Residues]:
    """The polymer residues of every chain with a standard amino acid."""
    if not 1 <= model <= len(models):
        raise UserError(f"{path}: no model {model}: the file has {len(models)}, counted from 1")
    atoms = _atoms(path, models[model - 1])
    found = {}
    for chain_id in dict.fromkeys(atoms.chain_id.tolist()):
        residues = _polymer(_Residues.of(_one_conformer(atoms[atoms.chain_id == chain_id])))
        if (residues.type != UNKNOWN).any():
            found[chain_id] = residues
    if not found:
        names = list(dict.fromkeys(atoms.res_name.tolist()))
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise UserError(f"{path}: no protein chain in model {model}; residues: {listed or 'only water'}")
    return found


def _chosen(where: Path | str, chains: dict[str, _Residues], chain: str | None) -> str:
    chain_id = next(iter(chains)) if chain is None else chain.strip()
    found = ", ".join(map(_shown, chains))
    if chain_id not in chains:
        raise UserError(f"{where}: no protein chain {_shown(chain_id)}: it has {found}")
    if chain is None and len(chains) > 1:
        _warn(f"{where}: protein chains {found}: took {_shown(chain_id)}; name another with chain= or --chain")
    return chain_id


def _take(path: Path, where: str, chain_id: str, residues: _Residues, skip_nonstandard: bool) -> Protein:
    _check_standard(residues, where, skip_nonstandard)
    _warn_of_breaks(residues, where)
    return _to_protein(residues, where, chain_id, name=Path(without_gz(path.name)).stem)


def _one_conformer(atoms: AtomArray) -> AtomArray:
    """Keeps the unlabelled atoms of a chain and, of every residue, the atoms of one alternate location."""
    labelled = ~np.isin(atoms.altloc_id, ["", " ", ".", "?"])
    if not labelled.any():
        return atoms
    some = atoms[labelled]
    # Alternate residues at one site may differ in name and may be listed apart from each other.
    _, code = np.unique(some.ins_code, return_inverse=True)
    sites = np.stack([some.res_id, code])
    _, first_of_site, site = np.unique(sites, axis=1, return_index=True, return_inverse=True)
    site = site.ravel()
    _, letter = np.unique(some.altloc_id, return_inverse=True)
    groups, first, group = np.unique(np.stack([site, letter]), axis=1, return_index=True, return_inverse=True)
    group = group.ravel()
    occupancy = np.bincount(group, np.nan_to_num(some.occupancy, nan=1.0)) / np.bincount(group)
    no_ca = np.bincount(group, some.atom_name == "CA") == 0
    # Rounded, or the last bit of a mean would decide a tie.
    order = np.lexsort((first, -occupancy.round(4), no_ca, groups[0]))
    _, best = np.unique(groups[0][order], return_index=True)
    keep = ~labelled
    keep[labelled] = np.isin(group, order[best])
    position = np.arange(len(keep))
    position[labelled] = position[labelled][first_of_site[site]]
    kept = np.flatnonzero(keep)
    return atoms[kept[np.argsort(position[kept], kind="stable")]]


def _polymer(residues: _Residues) -> _Residues:
    """The residues of the polypeptide: amino acids as ATOM records and MSE, and others that sit in the chain.

    Another residue sits in the chain where it is peptide-bonded to a neighbour, or its number continues the numbering
    inside the chain, and it has N, CA and C; or where it has other names (chromophores) but bonds to both neighbours.
    Thus free amino acids and cofactors with amino acid parts stay ligands.
    """
    standard = residues.type != UNKNOWN
    sure = standard & (~residues.hetero | (np.array(residues.name) == "MSE"))
    where = np.flatnonzero(sure)
    index = np.arange(len(standard))
    inside = (index > where[0]) & (index < where[-1]) if len(where) else np.zeros_like(sure)
    inside[1:-1] &= (residues.number[1:-1] >= residues.number[:-2]) & (residues.number[1:-1] <= residues.number[2:])
    bonded = _gaps(residues.backbone) <= 0
    linked = np.pad(bonded, (0, 1)) | np.pad(bonded, (1, 0))
    like_amino_acid = standard | ~np.isnan(residues.backbone).any((1, 2))
    keep = sure | (like_amino_acid & (linked | inside)) | (inside & _bridges(residues))
    return _Residues.of(residues.atoms[keep[residues.residue]])


def _gaps(backbone: Float[np.ndarray, "L 3 3"]) -> Float[np.ndarray, "gaps"]:
    """Å beyond the longest link from each residue to the next [L-1]: > 0 is a break, NaN where atoms are missing.

    C to N where both are there, else CA to CA.
    """
    peptide = np.linalg.norm(backbone[1:, 0] - backbone[:-1, 2], axis=-1) - CHAIN_BREAK_CN
    trace = np.linalg.norm(backbone[1:, 1] - backbone[:-1, 1], axis=-1) - CHAIN_BREAK_CA
    return np.where(np.isnan(peptide), trace, peptide)


def _bridges(residues: _Residues) -> Bool[np.ndarray, "L"]:
    """Whether atoms of any name bond to C of the residue before and to N of the residue after."""
    nowhere = np.full((1, 3), np.nan, dtype=np.float32)
    before = np.concatenate([nowhere, residues.backbone[:-1, 2]])
    after = np.concatenate([residues.backbone[1:, 0], nowhere])

    def touches(ends: Float[np.ndarray, "L 3"]) -> Bool[np.ndarray, "L"]:
        near = np.linalg.norm(residues.atoms.coord - ends[residues.residue], axis=-1) <= CHAIN_BREAK_CN
        return np.bincount(residues.residue, near, minlength=len(ends)) > 0

    return touches(before) & touches(after)


def _check_standard(residues: _Residues, where: str, skip: bool) -> None:
    others = np.flatnonzero(residues.type == UNKNOWN).tolist()
    if others and not skip:
        more = f" ({len(others)} such residues)" if len(others) > 1 else ""
        hint = "--skip-nonstandard (skip_nonstandard=True) masks it"
        raise UserError(f"{where}: residue {residues.label(others[0])} is not one of the 20 amino acids{more}: {hint}")


def _warn_of_breaks(residues: _Residues, where: str) -> None:
    breaks = np.flatnonzero(_gaps(residues.backbone) > 0).tolist()
    if breaks:
        pairs = ", ".join(f"{residues.label(k)} - {residues.label(k + 1)}" for k in breaks[:8])
        _warn(f"{where}: {len(breaks)} chain break(s): {pairs}" + (", ..." if len(breaks) > 8 else ""))


def _slot_table() -> dict[tuple[int, str], tuple[int, bool]]:
    """(residue type, atom name) -> atom14 slot, and whether that is the standard name."""
    table = {}
    for name, atoms in ATOM14.items():
        others = dict.fromkeys(_TERMINAL_OXYGENS, "O") | _OTHER_ATOM_NAMES.get(name, {})
        table |= {(TYPE_OF[name], other): (atoms.index(atom), False) for other, atom in others.items()}
        table |= {(TYPE_OF[name], atom): (slot, True) for slot, atom in enumerate(atoms)}
    return table


_SLOTS = _slot_table()


def _to_protein(residues: _Residues, where: str, chain_id: str, name: str) -> Protein:
    keys = zip(residues.type[residues.residue].tolist(), residues.atoms.atom_name.tolist(), strict=True)
    slot, standard_name = np.array([_SLOTS.get(key, (-1, False)) for key in keys]).T
    known = np.flatnonzero(slot >= 0)
    # The last assignment to a slot stays: the first atom of the standard name.
    order = known[np.lexsort((-known, standard_name[known]))]
    at, atoms = (residues.residue[order], slot[order]), residues.atoms[order]
    shape = (len(residues.name), NUM_SLOTS)
    positions, b_factor, mask = np.zeros((*shape, 3), np.float32), np.zeros(shape, np.float32), np.zeros(shape, bool)
    positions[at], b_factor[at], mask[at] = atoms.coord, np.nan_to_num(atoms.b_factor), True
    _check_atoms(residues, where, mask, positions)
    _warn_of_repeats(residues, where, known[standard_name[known] == 1], slot)

    keep = mask.any(1) | (residues.type == UNKNOWN)
    insertion = np.array([ord(code[0]) if code else NO_INSERTION for code in residues.insertion], dtype=np.int64)
    tensors = (positions, mask, residues.type, residues.number.astype(np.int64), insertion, b_factor)
    return Protein(*(torch.from_numpy(array[keep]) for array in tensors), chain_id=chain_id, name=name)


def _check_atoms(
    residues: _Residues, where: str, mask: Bool[np.ndarray, "L 14"], positions: Float[np.ndarray, "L 14 3"]
) -> None:
    if not mask[:, CA].any():
        raise UserError(f"{where}: no residue has a CA atom")
    if mask.sum() == mask[:, CA].sum():
        raise UserError(f"{where}: only CA atoms: a structure needs at least the backbone atoms N, CA and C")
    wrong = np.flatnonzero(~np.isfinite(positions).all((1, 2))).tolist()
    if wrong:
        raise UserError(f"{where}: residue {residues.label(wrong[0])} has coordinates that are not finite numbers")


def _warn_of_repeats(
    residues: _Residues, where: str, known: Int[np.ndarray, "atoms"], slot: Int[np.ndarray, "all_atoms"]
) -> None:
    places, count = np.unique(residues.residue[known] * NUM_SLOTS + slot[known], return_counts=True)
    repeated = np.unique(places[count > 1] // NUM_SLOTS).tolist()
    if repeated:
        first = residues.label(repeated[0])
        _warn(f"{where}: {len(repeated)} residue(s) have an atom twice ({first} first): took the first of each")


# --------------------------------------------------------------------------------------------------------------- files


def _atoms(path: Path, model: _Model) -> AtomArray:
    """Every atom but the solvent, in all conformers, with altloc_id, occupancy and b_factor."""
    options = {"model": 1, "altloc": "all", "extra_fields": ["b_factor", "occupancy"]}
    with _parsing(path):
        if isinstance(model, str):
            atoms = PDBFile.read(StringIO(model)).get_structure(**options)
        else:
            atoms = pdbx.get_structure(model, **options)
    atoms.chain_id[np.isin(atoms.chain_id, [".", "?"])] = ""
    return atoms


@contextmanager
def _parsing(path: Path) -> Generator[None, None, None]:
    """Parsers meet malformed files with exceptions of any kind: they all become one line for the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of guessed elements and absent optional columns: neither matters here
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}"[:1000].split())
            raise UserError(f"{path}: damaged {_format(path)} file ({reason[:200]})") from error


def _open(path: Path) -> Sequence[_Model]:
    """The models of a file, each by itself: biotite would look through all atoms for every model."""
    kind = _format(path)
    data = _read_bytes(path)
    found = _recognise(path, data)
    if found != kind:
        hint = f": it looks like {found}, rename it" if found else ""
        raise UserError(f"{path}: no atoms found in {kind} format{hint}")
    with _parsing(path):
        if kind == "BinaryCIF":
            tree = msgpack.unpackb(data)
            _check_sizes(path, tree, len(data))
            return _split_models(_with_atoms(path, pdbx.BinaryCIFFile.deserialize(tree)))
        text = data.decode("utf-8", errors="replace")
        if kind == "mmCIF":
            _check_lines(path, text)
            return _split_models(_with_atoms(path, pdbx.CIFFile.read(StringIO(text))))
        return ["\n".join(lines) for lines in _pdb_models(path, text)]


def _pdb_models(path: Path, text: str) -> list[list[str]]:
    """Only the atoms, without solvent: most of a simulation snapshot, and often numbered beyond what the format can."""
    models, in_model = [], False
    for number, line in enumerate(text.splitlines(), start=1):
        is_atom = line.startswith(("ATOM", "HETATM"))
        if line.startswith("MODEL") or (is_atom and not in_model):
            models.append(["MODEL"])
            in_model = True
        elif line.startswith("END"):
            in_model = False
        if is_atom and line[17:20] not in _WATERS:
            if len(line.rstrip()) < 54:
                raise UserError(f"{path}: line {number} ends before its coordinates do: is the file cut off?")
            if not line[54:60].strip() or not line[60:66].strip():
                line = f"{line[:54]}{line[54:60].strip() or '1.00':>6}{line[60:66].strip() or '0.00':>6}{line[66:]}"
            models[-1].append(line)
    return models


def _check_lines(path: Path, text: str) -> None:
    """Refuses what would be parsed to a value of any length in the table of atoms."""
    inside = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith(("_", "loop_", "data_")):
            inside = line.startswith("_atom_site.")
        elif inside and (len(line) > _LONGEST_LINE or line.startswith(";")):
            raise UserError(f"{path}: line {number}: a long text among the atoms: the file is damaged")


def _check_sizes(path: Path, tree: dict, num_bytes: int) -> None:
    """Refuses columns of atoms that unroll to more rows than the file has bytes, or to values of any length."""
    for block in tree["dataBlocks"]:
        for category in block["categories"]:
            for column in category["columns"] if category["name"] == "_atom_site" else ():
                for part in filter(None, (column["data"], column["mask"])):
                    if not _fits_memory(part["encoding"], num_bytes):
                        raise UserError(f"{path}: damaged BinaryCIF file (_atom_site.{column['name']} is too large)")


def _fits_memory(encodings: list[dict], num_bytes: int) -> bool:
    for encoding in encodings:
        if encoding["kind"] in ("RunLength", "IntegerPacking") and not 0 <= encoding["srcSize"] <= num_bytes:
            return False
        if encoding["kind"] == "StringArray":
            offsets = {"data": encoding["offsets"], "encoding": encoding["offsetEncoding"]}
            inner = [encoding["dataEncoding"], encoding["offsetEncoding"]]
            if not all(_fits_memory(each, num_bytes) for each in inner):
                return False
            ends = pdbx.BinaryCIFData.deserialize(offsets).array.astype(np.int64)
            if np.diff(ends).max(initial=0) > _LONGEST_VALUE:
                return False
    return True


def _with_atoms(path: Path, file: pdbx.CIFFile | pdbx.BinaryCIFFile) -> pdbx.CIFBlock | pdbx.BinaryCIFBlock:
    """The first data block with atoms, completed with the columns that biotite asks for."""
    blocks = [file[name] for name in file if "atom_site" in file[name]]
    if not blocks:
        raise UserError(f"{path}: no data block with atoms")
    atom_site = blocks[0]["atom_site"]
    for name, column in atom_site.items():
        values = column.data.array
        if values.dtype.kind == "U" and values.dtype.itemsize > 4 * _LONGEST_VALUE:
            raise UserError(f"{path}: damaged {_format(path)} file (_atom_site.{name[:40]}: a value is too long)")
    for column, default in _CIF_DEFAULTS.items():
        if column not in atom_site:
            atom_site[column] = np.full(atom_site.row_count, default)
    for column in ("auth_asym_id", "auth_seq_id", "auth_comp_id", "auth_atom_id"):
        mask = atom_site[column].mask if column in atom_site else None
        if mask is not None and (mask.array != pdbx.MaskValue.PRESENT).all():
            del atom_site[column]  # biotite then takes the label_ column
    return blocks[0]


def _split_models(block: pdbx.CIFBlock | pdbx.BinaryCIFBlock) -> list[pdbx.CIFBlock | pdbx.BinaryCIFBlock]:
    atom_site = block["atom_site"]
    numbers = atom_site["pdbx_PDB_model_num"].as_array(np.int32)
    starts = np.sort(np.unique(numbers, return_index=True)[1]).tolist()
    return [
        type(block)({"atom_site": _rows(atom_site, slice(*ends))}) for ends in pairwise([*starts, atom_site.row_count])
    ]


def _rows(
    category: pdbx.CIFCategory | pdbx.BinaryCIFCategory, rows: slice
) -> pdbx.CIFCategory | pdbx.BinaryCIFCategory:
    columns = {
        name: type(column)(column.data.array[rows], None if column.mask is None else column.mask.array[rows])
        for name, column in category.items()
    }
    return type(category)(columns)


def _format(path: Path) -> str:
    suffix = Path(without_gz(path.name)).suffix.lower()
    if suffix not in _FORMATS:
        raise UserError(f"{path}: unknown format {suffix or 'without suffix'}: {_SUFFIX_HINT}")
    return _FORMATS[suffix]


def without_gz(name: str) -> str:
    """A file name without .gz, whatever its case."""
    return name[:-3] if name.lower().endswith(".gz") else name


def _warn(message: str) -> None:
    warnings.warn(message, StructureWarning, stacklevel=3)


def _shown(chain_id: str) -> str:
    return chain_id or "'' (blank)"


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    zipped = path.name.lower().endswith(".gz")
    if data and zipped != data.startswith(b"\x1f\x8b"):
        raise UserError(f"{path}: " + ("not a gzip file: drop .gz?" if zipped else "a gzip file: add .gz to its name"))
    try:
        data = _unpacked(path, data) if zipped else data
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip file ({error})") from error
    if not data.strip():
        raise UserError(f"{path}: the file is empty")
    return data


def _unpacked(path: Path, data: bytes) -> bytes:
    limit = max(_UNPACKED, 100 * len(data))
    parts, size = [], 0
    with gzip.GzipFile(fileobj=BytesIO(data)) as file:
        while part := file.read(2**20):
            parts.append(part)
            size += len(part)
            if size > limit:
                raise UserError(f"{path}: unpacks to more than {limit >> 20} MB, too much for a structure of its size")
    return b"".join(parts)


def _recognise(path: Path, data: bytes) -> str | None:
    if data.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise UserError(f"{path}: a web page, not a structure: download the file itself")
    if b"dataBlocks" in data[:1000]:
        return "BinaryCIF"
    if b"\0" in data:
        return None
    if b"_atom_site." in data:
        return "mmCIF"
    return "PDB" if re.search(rb"^(ATOM|HETATM)", data, re.MULTILINE) else None


# ------------------------------------------------------------------------------------------------------------- writing


def write_structure(proteins: Protein | Sequence[Protein], path: str | Path) -> None:
    """Writes one chain, or several as the models of one file; the suffix of `path` says in which format.

    Coordinates have 3 decimals, B-factors 2. Missing atoms and `UNKNOWN` residues are left out. The file appears whole
    or not at all, in place of one that was there.

    Raises:
        UserError: unknown suffix, nothing to write, coordinates that are not finite, a folder that cannot be written,
            or what the PDB format cannot hold (chain ids beyond one character, 99,999 or more atoms, long numbers).
        ValueError: a batch, or atoms that the residue type does not have.
    """
    path = Path(path)
    kind = _format(path)
    proteins = [proteins] if isinstance(proteins, Protein) else list(proteins)
    models = [_to_atoms(protein, path) for protein in proteins]
    if not models:
        raise UserError(f"{path}: no structure to write")
    data = _pdb_bytes(models, path) if kind == "PDB" else _cif_bytes(models, kind)
    write_whole(path, gzip.compress(data, 6, mtime=0) if path.name.lower().endswith(".gz") else data)


_ATOM_NAMES = np.array([atoms + [""] * (NUM_SLOTS - len(atoms)) for atoms in ATOM14.values()])


def _to_atoms(protein: Protein, path: Path) -> AtomArray:
    if protein.residue_type.dim() != 1:
        raise ValueError(f"expected one chain, got a batch of shape {tuple(protein.residue_type.shape)}: unstack it")
    protein = protein.map(lambda tensor: tensor.detach().cpu())
    present = protein.atom_mask & (protein.residue_type != UNKNOWN)[:, None]
    residue, slot = (index.numpy() for index in present.nonzero(as_tuple=True))
    types = protein.residue_type.numpy()[residue]
    atoms = AtomArray(len(residue))
    atoms.coord = protein.positions[present].double().numpy().round(3)
    atoms.set_annotation("chain_id", np.full(len(residue), protein.chain_id))
    atoms.res_id = protein.residue_number.numpy()[residue]
    atoms.ins_code = np.array([chr(code).strip() for code in protein.insertion_code.tolist()], dtype="U1")[residue]
    atoms.res_name = np.array(RESIDUE_NAMES)[types]
    atoms.atom_name = _ATOM_NAMES[types, slot]
    atoms.element = atoms.atom_name.astype("U1")
    atoms.set_annotation("occupancy", np.ones(len(residue)))
    atoms.set_annotation("b_factor", protein.b_factor[present].double().numpy().round(2))
    if not len(residue):
        raise UserError(f"{path}: no atoms to write")
    if (atoms.atom_name == "").any():
        raise ValueError("atom_mask marks atoms that the residue type does not have")
    if not np.isfinite(atoms.coord).all():
        raise UserError(f"{path}: not written: coordinates are not finite numbers")
    return atoms


def _pdb_bytes(models: list[AtomArray], path: Path) -> bytes:
    lines = []
    for number, atoms in enumerate(models, start=1):
        _check_pdb_limits(atoms, number, path)
        if atoms.chain_id[0] == "":
            atoms.set_annotation("chain_id", np.full(len(atoms), " "))  # biotite would leave the column out
        file = PDBFile()
        file.set_structure(atoms)
        last = file.lines[-1]
        chain = [*file.lines, f"TER   {len(atoms) + 1:5d}      {last[17:27]}".ljust(80)]
        lines += chain if len(models) == 1 else [f"MODEL     {number:4d}".ljust(80), *chain, "ENDMDL".ljust(80)]
    return "\n".join([*lines, "END".ljust(80), ""]).encode()


def _check_pdb_limits(atoms: AtomArray, number: int, path: Path) -> None:
    limits = {
        f"chain id '{atoms.chain_id[0]}' has more than one character": len(atoms.chain_id[0]) > 1,
        "a residue number is beyond -999 to 9999": not _within(atoms.res_id, -999.0, 9999.0),
        "there are more than 99,999 atoms": len(atoms) >= 99_999,  # TER takes a number, too
        "there are more than 9,999 models": number > 9999,
        "a coordinate is beyond -999.999 to 9999.999 Å": not _within(atoms.coord, -999.9994, 9999.9994),
        "a B-factor is beyond -99.99 to 999.99": not _within(atoms.b_factor, -99.994, 999.994),
    }
    for what, exceeded in limits.items():
        if exceeded:
            hint = "write .cif instead (--format cif)"
            raise UserError(f"{path}: not written: {what}, which the PDB format cannot hold: {hint}")


def _within(values: np.ndarray, low: float, high: float) -> bool:
    return bool(values.min() >= low and values.max() <= high)


def _cif_bytes(models: list[AtomArray], kind: str) -> bytes:
    file = pdbx.CIFFile() if kind == "mmCIF" else pdbx.BinaryCIFFile()
    atoms = concatenate(models)
    atoms.chain_id[atoms.chain_id == ""] = "."  # blank
    pdbx.set_structure(file, atoms)
    atom_site = file.block["atom_site"]
    # Models may differ in sequence, so in atoms: biotite's own stacks of models must not.
    atom_site["pdbx_PDB_model_num"] = np.repeat(np.arange(1, len(models) + 1), [len(atoms) for atoms in models])
    positions = [np.cumsum(np.isin(np.arange(len(atoms)), get_residue_starts(atoms))) for atoms in models]
    atom_site["label_seq_id"] = np.concatenate(positions)  # insertion codes would make equal numbers of res_id
    if kind == "mmCIF":
        return file.serialize().encode()
    stream = BytesIO()
    pdbx.compress(file).write(stream)
    return stream.getvalue()
