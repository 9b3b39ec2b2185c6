"""The 20 amino acids: names, atom14 order, bonds, interchangeable atoms, ideal backbone geometry, radii.

Bond lengths and angles: Engh & Huber (1991, 2001). Limits of backbone validity: as published with ProteinAE.
"""

from itertools import combinations

RESIDUE_LETTERS = "ACDEFGHIKLMNPQRSTVWY"
NUM_TYPES = 20
UNKNOWN = 20  # residue type of a padded or masked residue
NUM_SLOTS = 14
N, CA, C, O, CB = range(5)

_ATOMS: dict[str, str] = {
    "ALA": "N CA C O CB",
    "CYS": "N CA C O CB SG",
    "ASP": "N CA C O CB CG OD1 OD2",
    "GLU": "N CA C O CB CG CD OE1 OE2",
    "PHE": "N CA C O CB CG CD1 CD2 CE1 CE2 CZ",
    "GLY": "N CA C O",
    "HIS": "N CA C O CB CG ND1 CD2 CE1 NE2",
    "ILE": "N CA C O CB CG1 CG2 CD1",
    "LYS": "N CA C O CB CG CD CE NZ",
    "LEU": "N CA C O CB CG CD1 CD2",
    "MET": "N CA C O CB CG SD CE",
    "ASN": "N CA C O CB CG OD1 ND2",
    "PRO": "N CA C O CB CG CD",
    "GLN": "N CA C O CB CG CD OE1 NE2",
    "ARG": "N CA C O CB CG CD NE CZ NH1 NH2",
    "SER": "N CA C O CB OG",
    "THR": "N CA C O CB OG1 CG2",
    "VAL": "N CA C O CB CG1 CG2",
    "TRP": "N CA C O CB CG CD1 CD2 NE1 CE2 CE3 CZ2 CZ3 CH2",
    "TYR": "N CA C O CB CG CD1 CD2 CE1 CE2 CZ OH",
}
ATOM14: dict[str, list[str]] = {name: atoms.split() for name, atoms in _ATOMS.items()}
RESIDUE_NAMES = list(ATOM14)
"""Three-letter names in the order of RESIDUE_LETTERS."""

TYPE_OF = {name: index for index, name in enumerate(RESIDUE_NAMES)}

_BACKBONE_BONDS = "N-CA CA-C C-O"
_SIDE_CHAIN_BONDS = {
    "ALA": "CA-CB",
    "CYS": "CA-CB CB-SG",
    "ASP": "CA-CB CB-CG CG-OD1 CG-OD2",
    "GLU": "CA-CB CB-CG CG-CD CD-OE1 CD-OE2",
    "PHE": "CA-CB CB-CG CG-CD1 CG-CD2 CD1-CE1 CD2-CE2 CE1-CZ CE2-CZ",
    "GLY": "",
    "HIS": "CA-CB CB-CG CG-ND1 CG-CD2 ND1-CE1 CD2-NE2 CE1-NE2",
    "ILE": "CA-CB CB-CG1 CB-CG2 CG1-CD1",
    "LYS": "CA-CB CB-CG CG-CD CD-CE CE-NZ",
    "LEU": "CA-CB CB-CG CG-CD1 CG-CD2",
    "MET": "CA-CB CB-CG CG-SD SD-CE",
    "ASN": "CA-CB CB-CG CG-OD1 CG-ND2",
    "PRO": "CA-CB CB-CG CG-CD CD-N",
    "GLN": "CA-CB CB-CG CG-CD CD-OE1 CD-NE2",
    "ARG": "CA-CB CB-CG CG-CD CD-NE NE-CZ CZ-NH1 CZ-NH2",
    "SER": "CA-CB CB-OG",
    "THR": "CA-CB CB-OG1 CB-CG2",
    "VAL": "CA-CB CB-CG1 CB-CG2",
    "TRP": "CA-CB CB-CG CG-CD1 CG-CD2 CD1-NE1 NE1-CE2 CD2-CE2 CD2-CE3 CE2-CZ2 CE3-CZ3 CZ2-CH2 CZ3-CH2",
    "TYR": "CA-CB CB-CG CG-CD1 CG-CD2 CD1-CE1 CD2-CE2 CE1-CZ CE2-CZ CZ-OH",
}


def _bonds(name: str) -> list[tuple[int, int]]:
    slots = {atom: slot for slot, atom in enumerate(ATOM14[name])}
    pairs = f"{_BACKBONE_BONDS} {_SIDE_CHAIN_BONDS[name]}".split()
    return [(slots[start], slots[end]) for start, end in (pair.split("-") for pair in pairs)]


def _angles(bonds: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    neighbours: dict[int, list[int]] = {}
    for a, b in bonds:
        neighbours.setdefault(a, []).append(b)
        neighbours.setdefault(b, []).append(a)
    return [(a, centre, c) for centre, around in sorted(neighbours.items()) for a, c in combinations(sorted(around), 2)]


BONDS = {name: _bonds(name) for name in RESIDUE_NAMES}
"""Covalent bonds inside a residue, as pairs of atom14 slots."""

ANGLES = {name: _angles(BONDS[name]) for name in RESIDUE_NAMES}
"""Bond angles inside a residue, as (end, centre, end) of atom14 slots."""

CHI_ATOMS = {
    "ALA": [], "GLY": [],
    "CYS": ["N CA CB SG"], "SER": ["N CA CB OG"], "THR": ["N CA CB OG1"], "VAL": ["N CA CB CG1"],
    "ASP": ["N CA CB CG", "CA CB CG OD1"], "ASN": ["N CA CB CG", "CA CB CG OD1"],
    "PHE": ["N CA CB CG", "CA CB CG CD1"], "TYR": ["N CA CB CG", "CA CB CG CD1"],
    "TRP": ["N CA CB CG", "CA CB CG CD1"], "HIS": ["N CA CB CG", "CA CB CG ND1"],
    "ILE": ["N CA CB CG1", "CA CB CG1 CD1"], "LEU": ["N CA CB CG", "CA CB CG CD1"],
    "PRO": ["N CA CB CG", "CA CB CG CD"],
    "GLU": ["N CA CB CG", "CA CB CG CD", "CB CG CD OE1"], "GLN": ["N CA CB CG", "CA CB CG CD", "CB CG CD OE1"],
    "MET": ["N CA CB CG", "CA CB CG SD", "CB CG SD CE"],
    "LYS": ["N CA CB CG", "CA CB CG CD", "CB CG CD CE", "CG CD CE NZ"],
    "ARG": ["N CA CB CG", "CA CB CG CD", "CB CG CD NE", "CG CD NE CZ"],
}  # fmt: skip
"""Atoms of the side-chain torsions chi1..chi4."""

CHI_SLOTS = {
    name: [tuple(ATOM14[name].index(atom) for atom in torsion.split()) for torsion in torsions]
    for name, torsions in CHI_ATOMS.items()
}
"""The same as atom14 slots."""

PAIRS: dict[str, list[tuple[int, int]]] = {
    name: [(ATOM14[name].index(a), ATOM14[name].index(b)) for a, b in pairs]
    for name, pairs in {
        "ASP": [("OD1", "OD2")],
        "GLU": [("OE1", "OE2")],
        "PHE": [("CD1", "CD2"), ("CE1", "CE2")],
        "TYR": [("CD1", "CD2"), ("CE1", "CE2")],
    }.items()
}
"""Interchangeable atoms: their two names carry no physical order. Both pairs of a ring swap together."""

VDW_RADIUS = {"C": 1.7, "N": 1.55, "O": 1.52, "S": 1.8}  # Å

BACKBONE_BOND_LENGTH = {"N-CA": 1.459, "CA-C": 1.525, "C-N": 1.331, "C-O": 1.230}  # Å
BACKBONE_ANGLE = {"N-CA-C": 111.0, "CA-C-N": 117.2, "C-N-CA": 121.7, "CA-C-O": 120.1}  # degrees
BOND_LIMITS = {"N-CA": (1.399, 1.519), "CA-C": (1.447, 1.603), "C-N": (1.280, 1.380), "C-O": (1.172, 1.286)}
ANGLE_LIMITS = {"N-CA-C": (102.9, 119.1), "CA-C-N": (113.7, 126.3), "C-N-CA": (113.7, 132.3), "CA-C-O": (113.8, 126.4)}
CHAIN_BREAK_CN = 2.0  # Å between C and the next N
CHAIN_BREAK_CA = 4.2  # Å between consecutive CA
