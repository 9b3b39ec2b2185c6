"""Structure files spoilt in the ways that files get spoilt, and in the ways that somebody might spoil them."""

import gzip
import random
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import MDAnalysisTests
import msgpack
import numpy as np

from ophio.io import read_structure, write_structure

DATA = Path(MDAnalysisTests.__file__).parent / "data"
NUMBERS = [
    "0", "-1", "1e999", "-1e-999", "nan", "inf", "9" * 40, "2147483648", "-2147483649", "1.0.0", "0x10", "*****", "A000", "",
    "\u0663", "1_0",
]  # fmt: skip
SIZES = [0, -1, 1, 7, 2**31 - 1, 2**31, 2**40, -(2**31), 2**63 - 1, 1e308, float("nan"), None, "many", [], {}]
Mutation = Callable[[bytes, random.Random], bytes]


def sources() -> dict[str, list[bytes]]:
    """Small whole files of each suffix: several chains, models, conformers, insertion codes, ligands, hydrogens."""
    pdb = [(DATA / name).read_bytes() for name in ("adk_open_10res.pdb", "5digitResid.pdb", "model_then_cryst.pdb")]
    pdb += [_lines("4E43.pdb", 260), _lines("19hc.pdb.gz", 300), _lines("1osm.pdb.gz", 200), _lines("nucl_res.pdb", 40)]
    cif = [(DATA / "mmcif/1YJP.cif").read_bytes(), gzip.decompress((DATA / "mmcif/1BD2_short.cif.gz").read_bytes())]
    with TemporaryDirectory() as folder:
        protein = read_structure(DATA / "adk_open_10res.pdb")
        for name, content in (("a", protein), ("b", [protein, protein])):
            for suffix, found in ((".bcif", bcif := []), (".cif", cif)):
                write_structure(content, Path(folder) / f"{name}{suffix}")
                found.append((Path(folder) / f"{name}{suffix}").read_bytes())
    return {".pdb": pdb, ".cif": cif, ".bcif": bcif}


def _lines(name: str, count: int) -> bytes:
    data = (DATA / name).read_bytes()
    lines = (gzip.decompress(data) if name.endswith(".gz") else data).splitlines(keepends=True)
    atoms = [line for line in lines if line.startswith((b"ATOM", b"HETATM", b"MODEL", b"END"))]
    return b"".join(atoms[:count])


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def head_off(data: bytes, draw: random.Random) -> bytes:
    return data[draw.randrange(len(data) + 1) :]


def flip_bits(data: bytes, draw: random.Random) -> bytes:
    spoilt = bytearray(data)
    for _ in range(draw.choice([1, 3, 30]) if data else 0):
        spoilt[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(spoilt)


def overwrite(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    junk = draw.randbytes(draw.choice([1, 8, 200]))
    return data[:at] + junk + data[at + len(junk) :]


def insert(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    return (
        data[:at]
        + draw.choice([b"\0", b"\n", b"\r", b"'", b'"', b"\n;\n", b"#", b"\xff\xfe", b"\x0c", b" " * 99])
        + data[at:]
    )


def long_word(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    return (
        data[:at] + draw.choice([b"x", b"9", b"'", b"\xe2\x82\xac"]) * draw.choice([300, 60_000, 300_000]) + data[at:]
    )


def repeat_block(data: bytes, draw: random.Random) -> bytes:
    start, stop = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:stop] + data[start:stop] * draw.choice([1, 2, 15]) + data[stop:]


def drop_block(data: bytes, draw: random.Random) -> bytes:
    start, stop = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + data[stop:]


def shuffle_lines(data: bytes, draw: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    draw.shuffle(lines)
    return b"".join(lines)


def repeat_lines(data: bytes, draw: random.Random) -> bytes:
    return b"".join(line * draw.choice([0, 1, 1, 1, 2, 3]) for line in data.splitlines(keepends=True))


def swap_fields(data: bytes, draw: random.Random) -> bytes:
    fields = re.split(rb"(\s+)", data)
    for _ in range(draw.choice([1, 5, 40])):
        a, b = (draw.randrange(len(fields)) for _ in range(2))
        fields[a], fields[b] = fields[b], fields[a]
    return b"".join(fields)


def odd_numbers(data: bytes, draw: random.Random) -> bytes:
    chance = draw.choice([0.001, 0.05, 0.5])

    def odd(match: re.Match) -> bytes:
        return draw.choice(NUMBERS).encode() if draw.random() < chance else match[0]

    return re.sub(rb"-?\d+\.?\d*", odd, data)


def odd_columns(data: bytes, draw: random.Random) -> bytes:
    """Another text in the same columns of some lines: for PDB, where columns decide."""
    start, text = draw.randrange(80), draw.choice([*NUMBERS, "CA", "GLY", "HOH", "A", "B", "     ", "\t"]).encode()
    chance = draw.choice([0.02, 1.0])
    lines = data.split(b"\n")
    return b"\n".join(
        line[:start] + text + line[start + len(text) :] if draw.random() < chance else line for line in lines
    )


def odd_entries(data: bytes, draw: random.Random) -> bytes:
    """Other sizes, types and encodings in the tree of a BinaryCIF file; other files as bits flipped."""
    try:
        tree = msgpack.unpackb(data)
    except Exception:
        return flip_bits(data, draw)
    places = [(node, key) for node in _nodes(tree) for key in (node if isinstance(node, dict) else range(len(node)))]
    for _ in range(draw.choice([1, 1, 2, 10])):
        if places:
            node, key = draw.choice(places)
            node[key] = draw.choice([draw.choice(SIZES), draw.randbytes(8), draw.choice(draw.choice(places)[:1])])
    try:
        return msgpack.packb(tree)
    except (ValueError, OverflowError, RecursionError):  # a node became its own part
        return flip_bits(data, draw)


def _nodes(tree: object) -> list[dict | list]:
    if not isinstance(tree, (dict, list)):
        return []
    inner = tree.values() if isinstance(tree, dict) else tree
    return [tree, *(node for part in inner for node in _nodes(part))]


def long_runs(data: bytes, draw: random.Random) -> bytes:
    """Many of the numbers that a BinaryCIF file stores as 32 bits, among them lengths of runs, become very large."""
    try:
        tree = msgpack.unpackb(data)
    except Exception:
        return flip_bits(data, draw)
    columns = [node for node in _nodes(tree) if isinstance(node, dict) and isinstance(node.get("data"), bytes)]
    for column in draw.sample(columns, min(len(columns), 4)):
        values = np.frombuffer(column["data"][: len(column["data"]) // 4 * 4], "<i4").copy()
        values[draw.randrange(2) :: 2] = draw.choice([2**31 - 1, 10**8, -5, 0])
        column["data"] = values.tobytes()
    return msgpack.packb(tree)


def nothing(data: bytes, draw: random.Random) -> bytes:
    return draw.choice(
        [b"", b"\n", b"ATOM", b"data_x\n", b"loop_\n_atom_site.id\n", draw.randbytes(2000), b"\0" * 2000]
    )


MUTATIONS: list[Mutation] = [
    cut, head_off, flip_bits, overwrite, insert, long_word, repeat_block, drop_block, shuffle_lines, repeat_lines,
    swap_fields, odd_numbers, odd_columns, odd_entries, long_runs, nothing,
]  # fmt: skip


def spoil(data: bytes, mutations: list[Mutation], seed: int, zipped: bool) -> bytes:
    """The mutations one after the other; with `zipped`, the last one may hit the gzip file in place of its content."""
    draw = random.Random(seed)
    inside = len(mutations) - (zipped and draw.random() < 0.3)
    for mutate in mutations[:inside]:
        data = mutate(data, draw)
    if zipped:
        data = gzip.compress(data, 1, mtime=0)
        for mutate in mutations[inside:]:
            data = mutate(data, draw)
    return data


def gzip_bomb(size: int, start: bytes = b"") -> bytes:
    """A gzip file that holds `start` and `size` spaces, made without holding them."""
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(start)]
    parts += [packer.compress(b" " * 2**20) for _ in range(size >> 20)]
    return b"".join([*parts, packer.flush()])
