"""Spoilt structure files, latents, weights and corpora: read, or refused in one line, and never executed or blown up.

`benchmarks/fuzz_readers.py` does the same with thousands of structure files, each in bounded time and memory.
"""

import gzip
import pickle
import shutil
import tracemalloc
import warnings
from pathlib import Path

import adk
import msgpack
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning import LightningModule
from mutations import MUTATIONS, gzip_bomb, sources, spoil

from ophio import io as ophio_io
from ophio import pretrained
from ophio.autoencoder import Autoencoder
from ophio.data import Filters, Settings, prepare
from ophio.data.corpus import Corpus, shard_path
from ophio.data.latents import LatentCorpus, encode_corpus, write_latents
from ophio.errors import UserError
from ophio.io import read_chains, read_models, read_structure, write_structure
from ophio.latents import load_latent
from ophio.lightning.checkpoint import check_resumable

WHOLE = sources()
FILES = [(suffix, data) for suffix, files in WHOLE.items() for data in files]
ARGUMENTS = {"channels": [4, 4], "strides": [2], "latent_channels": 4, "latent_lmax": 1}


def refusal(read, path: Path) -> str | None:
    """The message of a UserError, one line that names the file; None where the file is read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = read(path)
        except UserError as error:
            text = str(error)
            assert str(path) in text and len(text.splitlines()) == 1 and len(text) < 1000
            return text
    for protein in found if isinstance(found, list) else [found]:
        assert protein.residue_mask.any() and torch.isfinite(protein.positions).all()
    return None


# structure files


def test_whole_files_are_read(tmp_path):
    for number, (suffix, data) in enumerate(FILES):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(data)
        refused = refusal(read_structure, path)
        assert refused is None or "no protein chain" in refused or "not one of the 20" in refused, refused


@given(
    file=st.sampled_from(FILES),
    mutations=st.lists(st.sampled_from(MUTATIONS), min_size=1, max_size=3),
    seed=st.integers(0, 2**32),
    zipped=st.booleans(),
    reader=st.sampled_from([read_structure, read_chains, read_models]),
)
@settings(
    max_examples=300, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None
)  # fmt: skip
def test_spoilt_files_are_read_or_refused_in_one_line(tmp_path_factory, file, mutations, seed, zipped, reader):
    suffix, data = file
    path = tmp_path_factory.getbasetemp() / f"spoilt{suffix}{'.gz' if zipped else ''}"
    path.write_bytes(spoil(data, mutations, seed, zipped))
    refusal(reader, path)


@pytest.fixture
def megabytes():
    """A function that gives the largest amount of memory that Python and NumPy have held since."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()


def test_a_gzip_bomb_is_not_unpacked(tmp_path, monkeypatch, megabytes):
    monkeypatch.setattr(ophio_io, "_UNPACKED", 2**22)
    path = tmp_path / "bomb.pdb.gz"
    path.write_bytes(gzip_bomb(2**26, WHOLE[".pdb"][0]))
    assert path.stat().st_size < 2e5
    assert "unpacks to more than" in refusal(read_structure, path)
    assert megabytes() < 30


def test_runs_of_a_billion_atoms_are_not_unrolled(tmp_path, megabytes):
    tree = msgpack.unpackb(WHOLE[".bcif"][0])
    for category in tree["dataBlocks"][0]["categories"]:
        for column in category["columns"]:
            sizes = {"kind": "RunLength", "srcType": 3, "srcSize": 10**9}
            column["data"] = {
                "encoding": [sizes, {"kind": "ByteArray", "type": 3}],
                "data": np.array([1, 10**9], "<i4").tobytes(),
            }
            column["mask"] = None
    path = tmp_path / "runs.bcif"
    path.write_bytes(msgpack.packb(tree))
    assert "damaged BinaryCIF" in refusal(read_structure, path)
    assert megabytes() < 100


@pytest.mark.parametrize("suffix", [".cif", ".bcif"])
def test_one_long_word_does_not_widen_every_row(suffix, tmp_path, megabytes):
    word = "x" * 20_000
    if suffix == ".cif":
        data = WHOLE[".cif"][0].replace(b" ASN ", f" {word} ".encode())
    else:
        tree = msgpack.unpackb(WHOLE[".bcif"][0])
        columns = [column for c in tree["dataBlocks"][0]["categories"] for column in c["columns"]]
        for encoding in (encoding for column in columns for encoding in column["data"]["encoding"]):
            if encoding["kind"] == "StringArray":
                encoding["stringData"] += word
                encoding["offsetEncoding"] = [{"kind": "ByteArray", "type": 3}]
                encoding["offsets"] = np.array([0, len(encoding["stringData"])], "<i4").tobytes()
        data = msgpack.packb(tree)
    path = tmp_path / f"wide{suffix}"
    path.write_bytes(data)
    refused = refusal(read_structure, path)
    assert "a long text among the atoms" in refused or "is too large" in refused
    assert megabytes() < 30


# nothing is executed


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_by_any_name_is_not_run(tmp_path):
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung))
    pickle.loads(trap)
    assert sprung.exists()  # it works
    sprung.unlink()
    for name in ("a.npz", "a.pdb", "a.cif", "a.bcif", "a.safetensors", "last.ckpt"):
        (tmp_path / name).write_bytes(trap)
    np.savez(tmp_path / "object.npz", positions=np.array([Trap(sprung)], dtype=object), ids=np.array([Trap(sprung)]))
    torch.save({"model_config": Trap(sprung)}, tmp_path / "zip.ckpt")
    shutil.copy(tmp_path / "zip.ckpt", tmp_path / "zip.safetensors")
    (tmp_path / "zipped.pdb.gz").write_bytes(gzip.compress(trap))
    card = '{"format": 1, "arguments": {"channels": [4, 4], "strides": [2], "latent_channels": 4}}'
    for name in ("a", "zip"):
        (tmp_path / f"{name}.json").write_text(card)
    for name, read in (
        ("a.npz", load_latent), ("object.npz", load_latent),
        ("a.npz", lambda path: prepare([path], tmp_path / "corpus", Settings())),
        ("object.npz", lambda path: prepare([path], tmp_path / "corpus", Settings())),
        ("a.pdb", read_structure), ("a.cif", read_structure), ("a.bcif", read_structure), ("zipped.pdb.gz", read_structure),
        ("a.safetensors", pretrained.load), ("zip.safetensors", pretrained.load),
        ("last.ckpt", lambda path: check_resumable(path, LightningModule(), {})), ("zip.ckpt", lambda path: check_resumable(path, LightningModule(), {})),
    ):  # fmt: skip
        assert refusal(read, tmp_path / name), name
    assert not sprung.exists()


# flipped bits: structures, corpora, latents, weights


@pytest.fixture(scope="module")
def corpus_path(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "in").mkdir()
    for k in range(6):
        piece = adk.read(adk.OPEN)[1].crop(20 * k, 20 * k + 40)
        write_structure(piece, folder / "in" / f"{k}.pdb")
    no_limits = Settings(Filters(min_length=1, min_completeness=0.0, max_bond_deviation=None))
    prepare([folder / "in"], folder / "corpus", no_limits)
    return folder / "corpus"


def flipped(file: Path, position: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(position * (len(data) - 1))] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize("position", [0.0, 0.1, 0.3, 0.45, 0.6, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("file", ["shard", "index.arrow", "corpus.json"])
def test_a_flipped_bit_of_a_corpus_is_refused(file, position, corpus_path, tmp_path):
    folder = tmp_path / "corpus"
    shutil.copytree(corpus_path, folder)
    spoilt = shard_path(folder, 0) if file == "shard" else folder / file
    whole = [Corpus(corpus_path)[k] for k in range(len(Corpus(corpus_path)))]
    flipped(spoilt, position)
    try:
        corpus = Corpus(folder)
        read = [corpus[k] for k in range(len(corpus))]
    except UserError as error:
        assert str(folder) in str(error) and len(str(error).splitlines()) == 1
        return
    same = [
        torch.equal(a.positions, b.positions) and a.sequence == b.sequence for a, b in zip(whole, read, strict=True)
    ]
    assert all(same)  # a bit of padding or of what nobody reads


@pytest.mark.parametrize("position", [0.0, 0.001, 0.2, 0.5, 0.9, 1.0])
def test_a_flipped_bit_of_latents_is_refused(position, corpus_path, tmp_path):
    model = Autoencoder(**ARGUMENTS).eval()
    columns = {"train": encode_corpus(model, Corpus(corpus_path), progress=False)}
    write_latents(
        tmp_path / "latents", {"autoencoder": "x", "corpus": "y", "corpus_name": "z", "chains": [1, None]}, columns
    )
    assert len(LatentCorpus(tmp_path / "latents", "train")) == 6
    flipped(tmp_path / "latents" / "train.safetensors", position)
    with pytest.raises(UserError, match="train.safetensors: damaged"):
        LatentCorpus(tmp_path / "latents", "train")
