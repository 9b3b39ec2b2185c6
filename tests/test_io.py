"""Files of every format to Protein and back: what is taken, what is refused, and that nothing changes on the way."""

import gzip
import os
import random
import warnings
from pathlib import Path

import MDAnalysisTests
import numpy as np
import pytest
import torch
from biotite.structure import filter_canonical_amino_acids
from biotite.structure.io import pdbx
from biotite.structure.io.pdb import PDBFile

from ophio import io as ophio_io
from ophio.constants import ATOM14, RESIDUE_NAMES, TYPE_OF, UNKNOWN
from ophio.errors import UserError
from ophio.io import (
    StructureWarning,
    list_chains,
    num_models,
    read_chains,
    read_models,
    read_structure,
    write_structure,
)
from ophio.protein import Protein, stack

DATA = Path(MDAnalysisTests.__file__).parent / "data"
SUFFIXES = [suffix + gz for suffix in (".pdb", ".ent", ".cif", ".mmcif", ".bcif") for gz in ("", ".gz")]


# ---- files made by hand: the first residues of an HIV protease, PQITLWKRPL, edited by column


def peptide(first=1, last=10) -> list[str]:
    lines = (DATA / "4E43.pdb").read_text().splitlines()
    kept = [line for line in lines if line.startswith("ATOM") and line[21] == "A"]
    return [put(line, 16, " ") for line in kept if first <= int(line[22:26]) <= last]


def put(line: str, start: int, text: str) -> str:
    return line[:start] + text + line[start + len(text) :]


def edit(lines: list[str], number: int, start: int, text: str) -> list[str]:
    """Replaces columns of one residue."""
    return [put(line, start, text) if int(line[22:26]) == number else line for line in lines]


def rename(lines: list[str], number: int, name: str, record: str = "HETATM") -> list[str]:
    return edit(edit(lines, number, 17, name), number, 0, record)


def shift(line: str, by: float) -> str:
    return put(line, 30, f"{float(line[30:38]) + by:8.3f}")


def atom_name(line: str) -> str:
    return line[12:16].strip()


@pytest.fixture
def save(tmp_path):
    def save(lines: list[str], name: str = "made.pdb") -> Path:
        path = tmp_path / name
        path.write_text("\n".join([*lines, "END", ""]))
        return path

    return save


def quiet(path: Path, **options) -> Protein:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StructureWarning)
        return read_structure(path, **options)


def names_of(protein: Protein, residue: int) -> list[str]:
    atoms = ATOM14[RESIDUE_NAMES[protein.residue_type[residue]]]
    return [atom for atom, there in zip(atoms, protein.atom_mask[residue].tolist()) if there]


def assert_same(a: Protein, b: Protein, tolerance: float = 0.0) -> None:
    for field in ("atom_mask", "residue_type", "residue_number", "insertion_code"):
        assert torch.equal(getattr(a, field), getattr(b, field)), field
    assert torch.allclose(a.positions, b.positions, rtol=0, atol=tolerance)
    assert torch.allclose(a.b_factor, b.b_factor, rtol=0, atol=10 * tolerance)
    assert a.chain_id == b.chain_id


# ---- real files


def biotite_heavy_atoms(path: Path, chain: str):
    """The canonical amino acids as biotite alone reads them, without hydrogens and OXT."""
    stream = gzip.open(path, "rt") if path.suffix == ".gz" else open(path)
    options = {"model": 1, "altloc": "occupancy", "extra_fields": ["b_factor", "occupancy"]}
    with stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if ".cif" in path.name:
            atoms = pdbx.get_structure(pdbx.CIFFile.read(stream), **options)
        else:
            atoms = PDBFile.read(stream).get_structure(**options)
    atoms = atoms[filter_canonical_amino_acids(atoms) & (atoms.chain_id == chain)]
    return atoms[~np.isin(atoms.element, ["H", "D"]) & (atoms.atom_name != "OXT")]


@pytest.mark.parametrize(
    "name, chain",
    [
        ("4E43.pdb", "A"), ("4E43.pdb", "B"), ("19hc.pdb.gz", "A"), ("1a28.pdb.gz", "B"), ("1osm.pdb.gz", "A"),
        ("merge/2zmm/protein.pdb", "A"), ("mmcif/5PTI.cif.gz", "A"), ("mmcif/3PWP.cif.gz", "A"),
        ("mmcif/3PWP.pdb.gz", "D"), ("mmcif/1BD2.cif.gz", "E"), ("mmcif/multimodel_warning.cif.gz", "B"),
    ],
)  # fmt: skip
def test_atoms_are_those_that_biotite_reads(name, chain):
    protein = quiet(DATA / name, chain=chain)
    expected = biotite_heavy_atoms(DATA / name, chain)
    assert len(expected) > 400
    assert int(protein.atom_mask.sum()) == len(expected)
    residue, slot = (index.numpy() for index in protein.atom_mask.nonzero(as_tuple=True))
    ours = {}
    for r, s in zip(residue, slot):
        name = RESIDUE_NAMES[protein.residue_type[r]]
        key = (int(protein.residue_number[r]), chr(protein.insertion_code[r]).strip(), name, ATOM14[name][s])
        ours[key] = (*protein.positions[r, s].tolist(), float(protein.b_factor[r, s]))
    for atom in expected:
        values = ours[int(atom.res_id), str(atom.ins_code), str(atom.res_name), str(atom.atom_name)]
        assert values == pytest.approx((*atom.coord.tolist(), float(atom.b_factor)), abs=1e-4)


@pytest.mark.parametrize("entry", ["1BD2", "3PWP", "3KPR", "1BD2_short"])
def test_pdb_and_mmcif_of_one_entry_agree(entry):
    pdb, cif = DATA / f"mmcif/{entry}.pdb.gz", DATA / f"mmcif/{entry}.cif.gz"
    assert list_chains(pdb) == list_chains(cif)
    for chain in list_chains(pdb)[-2:]:
        assert_same(quiet(pdb, chain=chain), quiet(cif, chain=chain))


def test_insertion_codes_and_numbers():
    protein = read_structure(DATA / "1osm.pdb.gz")
    with gzip.open(DATA / "1osm.pdb.gz", "rt") as lines:
        seen = dict.fromkeys((int(line[22:26]), line[26]) for line in lines if line.startswith("ATOM"))
    assert list(seen) == [(n, chr(c)) for n, c in zip(protein.residue_number.tolist(), protein.insertion_code.tolist())]
    assert len({code for _, code in seen}) > 5


def test_adenylate_kinase():
    protein = read_structure(DATA / "adk_open.pdb")
    assert protein.sequence.startswith("MRIILLGAPGAGKGTQAQFIMEKYGIPQISTGDMLRAAVKSGSELGKQ")
    assert (protein.num_residues, int(protein.atom_mask.sum()), protein.name) == (214, 1655, "adk_open")
    assert protein.chain_id == ""  # the file leaves it blank
    assert protein.residue_mask.all()
    assert torch.isfinite(protein.positions).all()
    assert (protein.positions[~protein.atom_mask] == 0).all()
    assert protein.positions.dtype == torch.float32
    assert protein.residue_type.dtype == protein.residue_number.dtype == protein.insertion_code.dtype == torch.int64


def structure_files() -> list[Path]:
    return sorted(p for p in DATA.rglob("*") if p.name.lower().endswith(tuple(SUFFIXES)) and p.stat().st_size < 4e6)


def test_every_file_is_read_or_refused_in_one_line():
    files, read = structure_files(), 0
    assert len(files) > 100
    for path in files:
        try:
            protein = quiet(path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            continue
        read += 1
        assert protein.residue_mask.any() and torch.isfinite(protein.positions).all(), path
        assert list_chains(path)[0] == protein.chain_id
    assert read > 60


def test_damaged_files_are_read_or_refused_in_one_line(tmp_path):
    write_structure(read_structure(DATA / "adk_open_10res.pdb"), tmp_path / "whole.bcif")
    source = {
        ".pdb": (DATA / "adk_open_10res.pdb").read_bytes(),
        ".cif": (DATA / "mmcif/1YJP.cif").read_bytes(),
        ".bcif": (tmp_path / "whole.bcif").read_bytes(),
    }
    draw, refused = random.Random(0), 0
    for suffix, whole in source.items():
        for trial in range(40):
            data = bytearray(whole)
            if trial % 4 == 0:
                data = data[: draw.randrange(len(data))]
            for _ in range(trial % 7):
                data[draw.randrange(len(data))] = draw.randrange(256)
            path = tmp_path / f"{trial}{suffix}"
            path.write_bytes(data)
            try:
                quiet(path)
            except UserError as error:
                refused += 1
                assert str(path) in str(error) and "\n" not in str(error)
    assert 20 < refused < 120


# ---- alternate locations


def alternate(lines: list[str], number: int, a: float, b: float, atoms=None) -> list[str]:
    """Each line of the residue (or of these atoms) twice: letter A, and letter B one Å further."""
    out = []
    for line in lines:
        if int(line[22:26]) == number and (atoms is None or atom_name(line) in atoms):
            for letter, occupancy, by in (("A", a, 0.0), ("B", b, 1.0)):
                out.append(put(put(shift(line, by), 16, letter), 54, f"{occupancy:6.2f}"))
        else:
            out.append(line)
    return out


@pytest.mark.parametrize("a, b, moved", [(0.5, 0.5, 0.0), (0.4, 0.6, 1.0), (0.6, 0.4, 0.0)])
def test_a_residue_takes_the_conformer_of_highest_occupancy(save, a, b, moved):
    plain = read_structure(save(peptide()))
    read = quiet(save(alternate(peptide(), 3, a, b), "alternate.pdb"))
    difference = read.positions - plain.positions
    assert torch.equal(read.atom_mask, plain.atom_mask)
    assert torch.allclose(difference[2][read.atom_mask[2]][:, 0], torch.tensor(moved), atol=2e-3)
    assert difference[[0, 1, 3, 4]].abs().max() == 0


def test_conformers_are_not_mixed_within_a_residue_but_chosen_for_each(save):
    lines = alternate(alternate(peptide(), 3, 0.4, 0.6), 5, 0.6, 0.4, atoms=("CD1", "CD2"))
    # One atom of residue 3 has A above B: the mean decides for the whole residue.
    one_sided = {"A": "  0.95", "B": "  0.05"}
    here = ("   3", "CD1")
    lines = [put(line, 54, one_sided[line[16]]) if (line[22:26], atom_name(line)) == here else line for line in lines]
    plain, read = read_structure(save(peptide())), quiet(save(lines, "alternate.pdb"))
    difference = (read.positions - plain.positions)[..., 0]
    assert torch.allclose(difference[2][read.atom_mask[2]], torch.tensor(1.0), atol=2e-3)
    assert difference[4].abs().max() == 0


def test_the_mean_occupancy_decides_not_the_number_of_atoms(save):
    both = alternate(peptide(), 3, 0.45, 0.55)
    lines = [line for line in both if not (line[16] == "B" and atom_name(line) in ("CG1", "CG2", "CD1"))]
    assert names_of(quiet(save(lines)), 2) == ["N", "CA", "C", "O", "CB"]
    equal = alternate(peptide(), 3, 0.1, 0.1, atoms=("CB", "CG1", "CG2"))  # 0.1 thrice sums to more than 0.3
    lines = [line for line in equal if not (line[16] == "A" and atom_name(line) in ("CG1", "CG2"))]
    assert names_of(quiet(save(lines)), 2) == ["N", "CA", "C", "O", "CB", "CD1"]


def test_a_conformer_without_ca_gives_way(save):
    lines = [
        line
        for line in alternate(peptide(), 3, 0.3, 0.7)
        if not (line[16] == "B" and atom_name(line) in ("N", "CA", "C", "O"))
    ]
    assert_same(read_structure(save(lines)), read_structure(save(peptide(), "plain.pdb")))


def test_alternate_residues_at_one_site(save):
    lines = alternate(peptide(), 4, 0.3, 0.7)  # THR, of which B becomes SER
    serine = [put(line, 17, "SER") for line in lines if line[16] == "B" and atom_name(line) != "CG2"]
    serine = [put(line, 12, " OG ") if atom_name(line) == "OG1" else line for line in serine]
    others = [line for line in lines if line[16] != "B"]
    after = next(k for k, line in enumerate(others) if line[22:26] == "   5")
    protein = quiet(save(others[:after] + serine + others[after:]))
    assert protein.sequence == "PQISLWKRPL"
    assert names_of(protein, 3) == ["N", "CA", "C", "O", "CB", "OG"]


@pytest.mark.parametrize("b", [0.3, 0.7])
def test_conformers_listed_apart_keep_their_place_in_the_chain(save, b):
    lines = alternate(peptide(), 4, 1.0 - b, b)
    apart = [line for line in lines if line[16] != "B"] + [line for line in lines if line[16] == "B"]
    assert_same(quiet(save(apart, "apart.pdb")), quiet(save(lines)))


# ---- names


@pytest.mark.parametrize("record", ["ATOM  ", "HETATM"])
def test_selenomethionine_is_methionine(save, record):
    lines = rename(peptide(), 7, "MSE", record)  # of LYS, whose CD is as good as a selenium
    lines = [put(line, 12, "SE  ") if line[17:20] == "MSE" and atom_name(line) == "CD" else line for line in lines]
    protein = read_structure(save(lines))
    assert protein.sequence == "PQITLWMRPL"
    assert names_of(protein, 6) == ["N", "CA", "C", "O", "CB", "CG", "SD", "CE"]


@pytest.mark.parametrize(
    "given, letter",
    [("HSD", "H"), ("HSE", "H"), ("HSP", "H"), ("HID", "H"), ("HIE", "H"), ("HIP", "H"), ("CYX", "C"), ("CYM", "C"),
     ("ASH", "D"), ("GLH", "E"), ("LYN", "K")],
)  # fmt: skip
def test_protonation_states(save, given, letter):
    protein = read_structure(save(rename(peptide(), 7, given, "ATOM  ")))
    assert protein.sequence[6] == letter
    assert {"N", "CA", "C", "O", "CB"} <= set(names_of(protein, 6))


def test_other_atom_names(save):
    lines = [put(line, 12, " CD ") if line[17:20] == "ILE" and atom_name(line) == "CD1" else line for line in peptide()]
    lines = [put(line, 12, " OT1") if line[22:26] == "  10" and atom_name(line) == "O" else line for line in lines]
    lines.append(put(shift(lines[-1], 1.0), 12, " OT2"))
    assert_same(read_structure(save(lines)), read_structure(save(peptide(), "plain.pdb")))


def test_the_standard_name_goes_first(save):
    oxygen = next(line for line in peptide() if line[22:26] == "  10" and atom_name(line) == "O")
    for other in (" OT1", " OXT", " O1 "):
        extra = put(shift(oxygen, 1.0), 12, other)
        for lines in ([*peptide(), extra], [*peptide(1, 9), extra, *peptide(10, 10)]):
            assert_same(read_structure(save(lines)), read_structure(save(peptide(), "plain.pdb")))


def test_missing_atoms_are_masked_and_a_residue_without_ca_is_hidden(save):
    lines = [line for line in peptide() if not (line[22:26] == "   3" and atom_name(line) in ("CA", "CD1"))]
    lines = [line for line in lines if not (line[22:26] == "   6")] + [
        put(line, 12, " H  ") for line in peptide(6, 6) if atom_name(line) == "N"
    ]
    protein = quiet(save(lines))
    assert protein.residue_number.tolist() == [1, 2, 3, 4, 5, 7, 8, 9, 10]  # 6 had but a hydrogen
    assert names_of(protein, 2) == ["N", "C", "O", "CB", "CG1", "CG2"]
    assert protein.residue_mask.tolist() == [True, True, False] + [True] * 6


def test_solvent_ions_ligands_caps_and_hydrogens_are_dropped(save):
    plain = save(peptide(), "plain.pdb")
    carbon = peptide(1, 1)[1]
    cofactor = zip((" N  ", " CA ", " C  ", " CB "), range(60, 80, 5))
    far = [shift(put(put(carbon, 22, f"{400 + k:4d}"), 0, "HETATM"), 60.0 + 5 * k) for k in range(4)]
    extra = [
        put(put(far[0], 12, " O  "), 17, "HOH"), put(put(far[1], 12, "CA  "), 17, " CA"),
        put(put(far[2], 12, " C1 "), 17, "GOL"), put(put(far[3], 12, "ZN  "), 17, " ZN"),
        *(shift(put(put(put(carbon, 12, name), 17, "SAM"), 22, " 450"), by) for name, by in cofactor),
    ]  # fmt: skip
    nitrogen = peptide(1, 1)[0]
    cap = [put(put(put(shift(nitrogen, -1.3), 12, " C  "), 17, "ACE"), 22, "   0")]
    hydrogens = [put(shift(nitrogen, 0.9), 12, name) for name in (" H1 ", " D  ", "1H  ")]
    assert_same(read_structure(save(cap + hydrogens + peptide() + extra)), read_structure(plain))


def test_a_free_amino_acid_is_a_ligand(save):
    ligand = [put(put(shift(line, 40.0), 0, "HETATM"), 22, " 300") for line in peptide(2, 2)]
    assert_same(read_structure(save(peptide() + ligand)), read_structure(save(peptide(), "plain.pdb")))
    with pytest.raises(UserError, match="no protein chain"):
        read_structure(save(ligand, "ligand.pdb"))


def test_deuterium_of_a_neutron_structure_is_dropped():
    protein = read_structure(DATA / "mmcif/5PTI.cif.gz")
    assert protein.sequence == "RPDFCLEPPYTGPCKARIIRYFYNAKAGLCQTFVYGGCRAKRNNFKSAEDCMRTCGGA"
    assert protein.residue_mask.all()


# ---- non-standard residues


@pytest.mark.parametrize("record", ["ATOM  ", "HETATM"])
def test_a_nonstandard_residue_is_named_or_masked(save, record):
    lines = edit(rename(peptide(), 4, "TPO", record), 4, 26, "B")
    path = save(lines)
    with pytest.raises(UserError, match=r"made\.pdb: chain A: residue TPO 4B is not one.*--skip-nonstandard"):
        read_structure(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the chain is whole: no break is reported across the masked residue
        protein = read_structure(path, skip_nonstandard=True)
    assert protein.sequence == "PQIXLWKRPL"
    assert protein.residue_type[3] == UNKNOWN
    assert not protein.atom_mask[3].any() and not protein.residue_mask[3]
    assert (int(protein.residue_number[3]), chr(protein.insertion_code[3])) == (4, "B")


@pytest.mark.parametrize("number", [1, 10])
def test_nonstandard_ends_are_part_of_the_chain(save, number):
    with pytest.raises(UserError, match=f"residue PCA {number} "):
        read_structure(save(rename(peptide(), number, "PCA")))


def test_residues_between_gaps_are_part_of_the_chain(save):
    with pytest.raises(UserError, match="residue UNK 4 "):
        read_structure(save(rename([line for line in peptide() if line[25] not in "35"], 4, "UNK")))
    lines = rename([line for line in peptide() if line[22:26] != "   2"], 1, "MSE")
    assert quiet(save(lines)).sequence == "MITLWKRPL"


def test_a_chromophore_with_other_atom_names_is_part_of_the_chain(save):
    other = {" N  ": " N1 ", " CA ": " CA1", " C  ": " C3 ", " O  ": " O3 "}
    lines = [put(line, 12, other.get(line[12:16], "")) if line[22:26] == "   5" else line for line in peptide()]
    with pytest.raises(UserError, match="residue CRO 5 "):
        read_structure(save(rename(lines, 5, "CRO")))
    assert quiet(save(rename(lines, 5, "CRO")), skip_nonstandard=True).sequence == "PQITXWKRPL"


def test_real_modified_residues():
    with pytest.raises(UserError, match=r"residue CSO 67 "):
        quiet(DATA / "1hvr.pdb")
    protein = quiet(DATA / "1hvr.pdb", skip_nonstandard=True)
    assert (protein.sequence.count("X"), protein.num_residues) == (1, 99)
    with pytest.raises(UserError, match=r"NLE 65A .*\(2 such residues\)"):
        quiet(DATA / "unordered_res.pdb")


# ---- chains, breaks, models


def second_chain(chain: str, by: float = 30.0) -> list[str]:
    return [put(shift(line, by), 21, chain) for line in peptide(3, 9)]


def test_the_first_chain_is_taken_with_a_word(save):
    path = save([*peptide(), *second_chain("b")])
    assert list_chains(path) == ["A", "b"]
    with pytest.warns(StructureWarning, match=r"protein chains A, b: took A"):
        assert read_structure(path).chain_id == "A"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_structure(path, chain="b").residue_number.tolist() == list(range(3, 10))
    with pytest.raises(UserError, match=r"made\.pdb: no protein chain Z: it has A, b"):
        read_structure(path, chain="Z")


def test_a_chain_without_protein_does_not_count(save):
    dna = [put(put(line, 17, " DA"), 21, "D") for line in peptide(1, 1)]
    nucleotide = [put(put(line, 12, " P  "), 22, f"{k:4d}") for k, line in enumerate(dna)]
    path = save([*nucleotide, *peptide()])
    assert list_chains(path) == ["A"]
    assert read_structure(path).chain_id == "A"
    with pytest.raises(UserError, match="no protein chain in model 1; residues: DA"):
        read_structure(save(nucleotide, "dna.pdb"))


def test_blank_chain_ids(save):
    path = save([*(put(line, 21, " ") for line in peptide()), *second_chain("B")])
    assert list_chains(path) == ["", "B"]
    assert quiet(path).chain_id == ""
    assert read_structure(path, chain="").chain_id == read_structure(path, chain=" ").chain_id == ""
    with pytest.raises(UserError, match=r"it has '' \(blank\), B"):
        read_structure(path, chain="A")


@pytest.mark.parametrize("gone, pairs", [(range(5, 6), ["THR 4 - TRP 6"]), (range(4, 7), ["ILE 3 - LYS 7"])])
def test_breaks_are_named(save, gone, pairs):
    lines = [line for line in peptide() if int(line[22:26]) not in gone]
    with pytest.warns(StructureWarning, match=rf"1 chain break\(s\): {pairs[0]}"):
        assert read_structure(save(lines)).num_residues == 10 - len(gone)


def test_breaks_of_a_chain_without_c_and_n(save):
    lines = [line for line in peptide() if atom_name(line) not in ("C", "N")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_structure(save(lines))
    with pytest.warns(StructureWarning, match="ILE 3 - LEU 5"):
        read_structure(save([line for line in lines if line[22:26] != "   4"]))


def test_an_atom_listed_twice_is_taken_once(save):
    again = [shift(line, 20.0) for line in peptide() if line[22:26] == "   2"]
    with pytest.warns(StructureWarning, match=r"atom twice \(GLN 2 first\)") as said:
        twice = read_structure(save(sorted(peptide() + again, key=lambda line: int(line[22:26]))))
    assert len(said) == 1  # no break
    assert_same(twice, read_structure(save(peptide(), "plain.pdb")))


def test_models_of_an_nmr_ensemble():
    path = DATA / "nmr_neopetrosiamide.pdb"
    assert num_models(path) == 24
    first, last = (quiet(path, model=model, skip_nonstandard=True) for model in (1, 24))
    assert first.sequence == last.sequence
    assert (first.positions - last.positions).abs().max() > 1
    for model in (0, 25):
        with pytest.raises(UserError, match=f"no model {model}: the file has 24"):
            read_structure(path, model=model)


@pytest.mark.parametrize("name", ["3KPR.pdb.gz", "3KPR.cif.gz"])
def test_all_chains_at_once_are_the_chains_one_by_one(name, monkeypatch):
    path = DATA / "mmcif" / name
    one_by_one = [read_structure(path, chain) for chain in list_chains(path)]
    opened = []
    read_bytes = ophio_io._read_bytes
    monkeypatch.setattr(ophio_io, "_read_bytes", lambda path: opened.append(path) or read_bytes(path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that there are several is no news here
        together = read_chains(path)
    assert opened == [path] and len(together) > 5
    for a, b in zip(together, one_by_one, strict=True):
        assert_same(a, b)


def test_a_chain_that_cannot_be_taken_leaves_the_others(save):
    odd = rename(second_chain("b"), 4, "TPO")
    path = save([*peptide(), *odd, *second_chain("c", 60.0)])
    with pytest.raises(UserError, match=r"made\.pdb: chain b: residue TPO 4"):
        read_chains(path)
    errors = []
    proteins = read_chains(path, on_error=lambda *what: errors.append(what))
    assert [protein.chain_id for protein in proteins] == ["A", "c"]
    ((chain, error),) = errors
    assert chain == "b" and isinstance(error, UserError) and "TPO 4" in str(error)
    assert [protein.sequence for protein in read_chains(path, skip_nonstandard=True)][1] == "IXLWKRP"
    with pytest.raises(UserError, match="no model 2"):
        read_chains(path, model=2, on_error=lambda *what: errors.append(what))


@pytest.mark.parametrize("suffix", [".pdb", ".cif", ".bcif.gz"])
def test_all_models_at_once_are_the_models_one_by_one(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"ensemble{suffix}"
    ensemble = [quiet(DATA / "nmr_neopetrosiamide.pdb", model=k, skip_nonstandard=True) for k in (1, 2, 3)]
    write_structure([*ensemble, ensemble[0].crop(5, 20)], path)
    opened = []
    read_bytes = ophio_io._read_bytes
    one_by_one = [quiet(path, model=k) for k in (1, 2, 3, 4)]
    monkeypatch.setattr(ophio_io, "_read_bytes", lambda path: opened.append(path) or read_bytes(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StructureWarning)
        together = read_models(path)
    assert opened == [path] and [protein.num_residues for protein in together][3] < 20
    for a, b in zip(together, one_by_one, strict=True):
        assert_same(a, b)


def test_errors_of_models_name_the_model(save):
    moved = [shift(line, 5.0) for line in peptide()]
    path = save([*peptide(), *second_chain("b"), "END", *moved, "END", *second_chain("b")])
    with pytest.warns(StructureWarning, match="took A"), pytest.raises(UserError, match="model 3: no protein chain A"):
        read_models(path)
    with pytest.raises(UserError, match=r"made\.pdb: model 2: no protein chain b: it has A"):
        read_models(path, chain="b")
    path = save([*peptide(), "END", *rename(moved, 4, "TPO")])
    with pytest.raises(UserError, match=r"model 2: chain A: residue TPO 4"):
        read_models(path)
    assert [protein.sequence[3] for protein in read_models(path, skip_nonstandard=True)] == ["T", "X"]
    assert len(read_models(save(peptide(), "one.pdb"))) == 1


def test_models_may_differ_in_atoms_and_be_separated_by_end_only(save):
    frame = [shift(line, 5.0) for line in peptide(2, 8)]
    path = save([*peptide(), "END", *frame])
    assert num_models(path) == 2
    assert read_structure(path, model=1).num_residues == 10
    assert read_structure(path, model=2).num_residues == 7
    assert num_models(save(peptide(), "one.pdb")) == 1


# ---- files that are not what they say


def test_bad_files_are_refused(tmp_path):
    pdb = "\n".join([*peptide(), "END"]).encode()
    cif = (DATA / "mmcif/1YJP.cif").read_bytes()
    only_ca = "\n".join(line for line in peptide() if atom_name(line) == "CA").encode()
    no_ca = "\n".join(line for line in peptide() if atom_name(line) != "CA").encode()
    water = put(put(peptide()[0], 12, " O  "), 17, "HOH").encode()
    nan = "\n".join([put(peptide()[0], 30, "     nan"), *peptide()[1:]]).encode()
    stars = "\n".join([put(peptide()[0], 30, "********"), *peptide()[1:]]).encode()
    junk = random.Random(1).randbytes(3000)
    cases = [
        ("empty.pdb", b"", "empty"), ("blank.cif", b" \n\n", "empty"), ("empty.pdb.gz", gzip.compress(b""), "empty"),
        ("zero.pdb.gz", b"", "empty"),
        ("junk.pdb", junk, "no atoms found in PDB"), ("junk.cif", junk, "no atoms found in mmCIF"),
        ("junk.bcif", junk, "no atoms found in BinaryCIF"), ("text.pdb", b"hello world\n", "no atoms found in PDB"),
        ("page.pdb", b"<!DOCTYPE html><html></html>", "web page"), ("page.bcif", b"\n<html>ATOM</html>", "web page"),
        ("cif.pdb", cif, "looks like mmCIF"), ("pdb.cif", pdb, "looks like PDB"), ("pdb.bcif", pdb, "looks like PDB"),
        ("plain.pdb.gz", pdb, "not a gzip file"), ("zipped.pdb", gzip.compress(pdb), "add .gz"),
        ("cut.pdb.gz", gzip.compress(pdb)[:-40], "damaged gzip"), ("cut.pdb", pdb[:700], r"line 9 ends before"),
        ("what.xyz", pdb, r"unknown format \.xyz"), ("what", pdb, "without suffix"), ("what.gz", pdb, "without suffix"),
        ("cut.bcif", b"\x81\xaadataBlocks\x91", "damaged BinaryCIF"),
        ("nodata.cif", b"_atom_site.id 1\n", "no data block"),
        ("ca.pdb", only_ca, "only CA atoms"), ("noca.pdb", no_ca, "no residue has a CA atom"),
        ("water.pdb", water, "no protein chain.*water"), ("nan.pdb", nan, "PRO 1 has coordinates that are not finite"),
        ("stars.pdb", stars, "damaged PDB file"), ("stars.PDB", stars, "damaged PDB file"),
    ]  # fmt: skip
    for name, data, message in cases:
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(UserError, match=message) as caught:
            read_structure(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_opened(tmp_path):
    (tmp_path / "folder.pdb").mkdir()
    for name, message in [("absent.pdb", "No such file"), ("folder.pdb", "directory"), ("no/such.cif", "No such file")]:
        for function in (read_structure, read_chains, read_models, list_chains, num_models):
            with pytest.raises(UserError, match=message) as caught:
                function(str(tmp_path / name))
            assert name in str(caught.value)


def test_pdb_lines_without_occupancy_and_b_factor(save):
    plain = read_structure(save(peptide(), "plain.pdb"))
    assert_same(read_structure(save([line[:54] for line in peptide()])), plain.replace(b_factor=plain.b_factor * 0))


def test_mmcif_with_few_columns_and_without_author_names(tmp_path):
    columns = "label_atom_id label_comp_id label_asym_id label_seq_id auth_asym_id auth_seq_id Cartn_x Cartn_y Cartn_z"
    header = ["data_few", "loop_"] + [f"_atom_site.{column}" for column in columns.split()]
    rows = [
        f"{atom_name(line)} {line[17:20]} LONG {int(line[22:26])} ? ? {line[30:38]} {line[38:46]} {line[46:54]}"
        for line in peptide()
    ]
    path = tmp_path / "few.cif"
    path.write_text("\n".join([*header, *rows, ""]))
    protein = read_structure(path)
    assert (protein.sequence, protein.chain_id) == ("PQITLWKRPL", "LONG")
    assert protein.residue_number.tolist() == list(range(1, 11))
    assert (protein.b_factor == 0).all()


# ---- writing


@pytest.fixture(scope="module")
def examples() -> dict[str, Protein]:
    return {
        "plain": read_structure(DATA / "adk_open.pdb"),
        "insertions": read_structure(DATA / "1osm.pdb.gz"),
        "negative": quiet(DATA / "dssp/2cayA.pdb.gz"),
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["plain", "insertions", "negative"])
def test_round_trip(tmp_path, examples, name, suffix):
    path = tmp_path / f"again{suffix}"
    write_structure(examples[name], path)
    again = quiet(path)
    assert_same(again, examples[name])
    assert again.name == "again"
    first = path.read_bytes()
    write_structure(again, path)
    assert path.read_bytes() == first
    assert first.startswith(b"\x1f\x8b") == suffix.endswith(".gz")


@pytest.mark.parametrize("suffix", [".pdb", ".cif", ".bcif"])
def test_unrounded_coordinates_are_kept_to_the_last_digit_of_the_format(tmp_path, examples, suffix):
    protein = examples["plain"]
    noise = torch.Generator().manual_seed(0)
    protein = protein.with_positions(protein.positions + torch.rand(protein.positions.shape, generator=noise))
    protein = protein.replace(b_factor=torch.rand(protein.b_factor.shape, generator=noise) * protein.atom_mask)
    write_structure(protein, tmp_path / f"a{suffix}")
    again = quiet(tmp_path / f"a{suffix}")
    assert (again.positions - protein.positions).abs().max() < 5.1e-4
    assert (again.b_factor - protein.b_factor).abs().max() < 5.1e-3


@pytest.mark.parametrize("suffix", [".pdb", ".cif", ".bcif"])
def test_models_of_different_sequence_and_masked_residues(tmp_path, examples, suffix):
    whole = examples["insertions"]
    gap = whole.replace(residue_type=whole.residue_type.index_fill(0, torch.tensor([3, 4]), UNKNOWN))
    models = [whole, gap, whole.crop(10, 40), examples["plain"].replace(chain_id="A")]
    path = tmp_path / f"path{suffix}"
    write_structure(models, path)
    assert num_models(path) == 4
    read = [quiet(path, model=k) for k in (1, 2, 3, 4)]
    assert_same(read[0], whole)
    left = torch.tensor([k for k in range(whole.num_residues) if k not in (3, 4)])
    assert_same(read[1], whole.map(lambda tensor: tensor[left]))
    assert_same(read[2], whole.crop(10, 40))
    assert_same(read[3], models[3])


def test_pdb_is_well_formed(tmp_path, examples):
    path = tmp_path / "two.pdb"
    write_structure([examples["insertions"]] * 2, path)
    lines = path.read_text().splitlines()
    assert {len(line) for line in lines} == {80}
    atoms = int(examples["insertions"].atom_mask.sum())
    records = [line[:6].strip() for line in lines]
    assert records == (["MODEL"] + ["ATOM"] * atoms + ["TER", "ENDMDL"]) * 2 + ["END"]
    assert lines[0].split() == ["MODEL", "1"]
    with gzip.open(DATA / "1osm.pdb.gz", "rt") as source:
        original = [line for line in source if line.startswith("ATOM") and line[12:16] != " OXT"]
    columns = slice(12, 66)  # names, numbers, coordinates, occupancies and B-factors as the PDB itself prints them
    assert [line[columns] for line in lines[1 : atoms + 1]] == [line[columns] for line in original]
    assert [line[76:78] for line in lines[1:6]] == [" N", " C", " C", " O", " C"]
    assert lines[atoms + 1][17:27] == lines[atoms][17:27]
    write_structure(examples["plain"], path)
    assert path.read_text().splitlines()[-3][17:22] == "GLY  "  # a blank chain id keeps its column
    assert path.read_text().splitlines()[-1].strip() == "END"


@pytest.mark.parametrize("suffix", [".cif", ".bcif"])
def test_mmcif_counts_residues_apart_from_their_numbers(tmp_path, examples, suffix):
    path = tmp_path / f"numbers{suffix}"
    protein = examples["insertions"].replace(chain_id="HEAVY")
    write_structure(protein, path)
    file = pdbx.CIFFile.read(path) if suffix == ".cif" else pdbx.BinaryCIFFile.read(path)
    labels = file.block["atom_site"]["label_seq_id"].as_array(int)
    assert list(dict.fromkeys(labels.tolist())) == list(range(1, protein.num_residues + 1))
    assert_same(read_structure(path), protein)


def test_what_the_pdb_format_cannot_hold(tmp_path, examples):
    protein = examples["plain"]
    far = protein.with_positions(protein.positions + 9990.0)
    low = protein.with_positions(protein.positions - 1000.0)
    hot = protein.replace(b_factor=protein.b_factor + 1000 * protein.atom_mask)
    cases = [
        (protein.replace(chain_id="AA"), "chain id 'AA'"),
        (protein.replace(residue_number=protein.residue_number + 9900), "residue number"),
        (protein.replace(residue_number=protein.residue_number - 1100), "residue number"),
        (far, "coordinate"), (low, "coordinate"), (hot, "B-factor"),
    ]  # fmt: skip
    for changed, message in cases:
        with pytest.raises(UserError, match=rf"big\.pdb: not written: .*{message}.*\.cif") as caught:
            write_structure(changed, tmp_path / "big.pdb")
        assert "\n" not in str(caught.value)
        write_structure(changed, tmp_path / "big.cif")
        assert_same(read_structure(tmp_path / "big.cif"), changed, tolerance=1e-3)
    assert sorted(os.listdir(tmp_path)) == ["big.cif"]


def test_too_many_atoms_for_pdb(tmp_path):
    shape = (21_000, 14)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[:, :5] = True
    large = Protein.from_atoms(torch.zeros(*shape, 3), mask, torch.zeros(21_000, dtype=torch.int64))
    wrapped = large.replace(residue_number=large.residue_number % 9999)
    with pytest.raises(UserError, match="99,999 atoms"):
        write_structure(wrapped, tmp_path / "large.pdb")


def test_an_existing_file_survives_a_failed_write(tmp_path, examples, monkeypatch):
    path = tmp_path / "result.pdb"
    write_structure(examples["plain"], path)
    before = path.read_bytes()
    broken = examples["plain"].with_positions(examples["plain"].positions * float("nan"))
    with pytest.raises(UserError, match="not finite"):
        write_structure(broken, path)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full_disk)
        with pytest.raises(UserError, match=r"result\.pdb: cannot be written \(No space left"):
            write_structure(examples["insertions"], path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["result.pdb"]


def test_what_cannot_be_written(tmp_path, examples):
    protein = examples["plain"]
    (tmp_path / "file").write_text("")
    nothing = protein.replace(residue_type=torch.full_like(protein.residue_type, UNKNOWN))
    for what, path, message in [
        (protein, tmp_path / "a.xyz", "unknown format"), (protein, tmp_path / "no/folder.pdb", "cannot be written"),
        (protein, tmp_path / "file/a.pdb", "cannot be written"), ([], tmp_path / "a.pdb", "no structure"),
        (nothing, tmp_path / "a.cif", "no atoms"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            write_structure(what, path)
    with pytest.raises(ValueError, match="unstack"):
        write_structure(stack([protein, protein]), tmp_path / "a.pdb")
    wrong = protein.replace(residue_type=torch.full_like(protein.residue_type, TYPE_OF["GLY"]))
    with pytest.raises(ValueError, match="does not have"):
        write_structure(wrong, tmp_path / "a.pdb")
    assert os.listdir(tmp_path) == ["file"]


def test_paths_beyond_ascii_and_upper_case_suffixes(tmp_path, examples):
    for name in ("Prötein αβ.pdb", "UPPER.CIF.GZ"):
        write_structure(examples["plain"], str(tmp_path / name))
        assert_same(read_structure(str(tmp_path / name)), examples["plain"])
    assert read_structure(tmp_path / "Prötein αβ.pdb").name == "Prötein αβ"


def test_gradients_and_precision_do_not_matter_to_the_writer(tmp_path, examples):
    positions = examples["plain"].positions.double().requires_grad_()
    write_structure(examples["plain"].replace(positions=positions), tmp_path / "grad.pdb")
    assert_same(read_structure(tmp_path / "grad.pdb"), examples["plain"])
