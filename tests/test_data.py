"""The corpus: preparation from archives and folders, reading, sampling, loading, and going on after interruptions."""

import csv
import gzip
import os
import pickle
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from inprocess import run_pipeline
from MDAnalysis.tests import datafiles

from ophio import io as ophio_io
from ophio.autoencoder import Autoencoder
from ophio.data import (
    Corpus,
    Entry,
    Filters,
    FolderOptions,
    LengthBucketBatchSampler,
    Settings,
    archive,
    folder,
    preparation,
    prepare,
    workers,
)
from ophio.data.datamodule import CorpusDataModule
from ophio.data.filters import Breaks, accept, longest_piece
from ophio.data.folder import Chains
from ophio.data.latents import LatentCorpus, encode_corpus, write_latents
from ophio.data.sampling import one_per_cluster
from ophio.data.transforms import random_crop, windows
from ophio.errors import UserError
from ophio.io import read_structure, write_structure

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
EDGES = (64, 96, 128)
NO_LIMITS = Settings(Filters(min_length=1, min_completeness=0.0, max_bond_deviation=None))


@pytest.fixture(scope="module")
def kinase():
    return read_structure(datafiles.PDB_small)


@pytest.fixture(scope="module")
def archive_file(kinase, tmp_path_factory) -> Path:
    """300 pieces of adenylate kinase of 50 to 120 residues, in 60 clusters."""
    return _write_archive(kinase, 300, tmp_path_factory.mktemp("archive") / "pieces.npz")


def _write_archive(protein, count: int, path: Path) -> Path:
    rng = np.random.default_rng(0)
    lengths = rng.integers(50, 121, size=count)
    starts = rng.integers(0, protein.num_residues - lengths)
    pieces = [protein.crop(int(a), int(a + n)).center() for a, n in zip(starts, lengths, strict=True)]
    clusters = np.arange(count) % (count // 5)
    np.savez(
        path,
        coords=np.concatenate([(piece.positions * 100).round().short().numpy() for piece in pieces]),
        mask=np.concatenate([piece.atom_mask.numpy() for piece in pieces]),
        aatype=np.concatenate([piece.residue_type.byte().numpy() for piece in pieces]),
        lengths=lengths.astype(np.int32),
        ids=np.array([f"piece{k}" for k in range(count)]),
        source=np.array([f"adk/{start}" for start in starts]),
        origin=np.array(["natural", "designed"])[clusters % 2],
        split=np.array(["train"] * 8 + ["val", "test"])[clusters % 10],
        cluster30=clusters.astype(np.int32),
        cluster90=np.arange(count, dtype=np.int32),
    )
    return path


@pytest.fixture(scope="module")
def corpus_path(archive_file, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "pieces"
    prepare([archive_file], path, NO_LIMITS)
    return path


def _pipeline(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "pipelines" / "prepare_data.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def _rejected(corpus: Path) -> dict[str, str]:
    with open(corpus / "rejected.csv", newline="", encoding="utf-8") as file:
        return {row["input"]: row["reason"] for row in csv.DictReader(file)}


# ------------------------------------------------------------------------------------------------ archives and reading


def test_corpus_gives_back_what_the_archive_holds(archive_file, corpus_path):
    corpus = Corpus(corpus_path)
    assert len(corpus) == 300
    for k in (0, 7, 150, 299):
        entry, protein, metadata = archive.read_entry(archive_file, k), corpus[k], corpus.metadata(k)
        torch.testing.assert_close(protein.positions, entry.protein.center().positions, atol=1e-5, rtol=0)
        for name in ("atom_mask", "residue_type", "residue_number", "insertion_code"):
            assert torch.equal(getattr(protein, name), getattr(entry.protein, name))
        assert protein.name == entry.id == f"piece{k}"
        assert (metadata["source"], metadata["cluster90"], metadata["length"]) == (
            entry.source, k, entry.protein.num_residues
        )  # fmt: skip
        assert (corpus.lengths[k], corpus.clusters[k]) == (entry.protein.num_residues, k % 60)


def test_exported_chains_are_those_of_the_corpus(corpus_path, tmp_path):
    main = runpy.run_path(str(ROOT / "pipelines" / "export.py"))["main"]
    options = (f"corpus={corpus_path}", "split=train", "origins=[designed]", "length=60-100", "num=5")
    for made in ("one", "same"):
        assert run_pipeline(main, "export", *options, f"output={tmp_path / made}") == 0
    files = sorted((tmp_path / "one").iterdir())
    assert len(files) == 5 and files[0].name.startswith("001_piece")
    assert [path.read_bytes() for path in files] == [
        path.read_bytes() for path in sorted((tmp_path / "same").iterdir())
    ]
    chosen = Corpus(corpus_path, "train", 60, 100, ["designed"])
    by_name = {chosen[k].name: chosen[k] for k in range(len(chosen))}
    for path in files:
        true, written = by_name[path.stem.split("_")[1]], read_structure(path)
        assert (written.positions - true.positions)[true.atom_mask].abs().max() < 1e-3
    assert run_pipeline(main, "export", *options, f"output={tmp_path}", "num=0") == 2
    options = (f"corpus={corpus_path}", "split=train", "num=1000", "cluster_balanced=true")
    assert run_pipeline(main, "export", *options, f"output={tmp_path / 'balanced'}") == 0
    every = Corpus(corpus_path, "train", 20, 512)
    names = [path.stem.split("_")[1] for path in (tmp_path / "balanced").iterdir()]
    cluster = {every[k].name: every.clusters[k] for k in range(len(every))}
    assert len(names) < len(every) and sorted(cluster[name] for name in names) == sorted(set(every.clusters))


def test_latents_know_the_origin_of_their_chains(corpus_path, tmp_path):
    """Clusters of odd number are designed (`_write_archive`); so are the chains that samples take their content from."""
    torch.manual_seed(0)
    model = Autoencoder(channels=[4, 4], strides=[2], latent_channels=4, latent_lmax=1).eval()
    columns = encode_corpus(model, Corpus(corpus_path, "train", max_length=60), progress=False)
    assert columns["designed"].tolist() == (columns["cluster30"] % 2).tolist()
    source = {"autoencoder": "x", "corpus": "y", "corpus_name": "z", "chains": [1, None]}
    info = write_latents(tmp_path / "latents", source, {"train": columns})
    latents = LatentCorpus(tmp_path / "latents", "train")
    assert [latents[k][2][3].item() for k in range(len(latents))] == columns["designed"].tolist()
    assert {chain[3] for chain in info["typical"]} == {0, 1}


def test_corpus_limits(corpus_path):
    whole = Corpus(corpus_path)
    chosen = Corpus(corpus_path, split="train", min_length=60, max_length=100, origins=["designed"])
    ids = {chosen[k].name for k in range(len(chosen))}
    all_of_them = map(whole.metadata, range(len(whole)))
    designed = [entry for entry in all_of_them if (entry["split"], entry["origin"]) == ("train", "designed")]
    assert ids == {entry["id"] for entry in designed if 60 <= entry["length"] <= 100} and len(ids) > 20
    with pytest.raises(UserError, match="no chain with split=train, lengths 5000"):
        Corpus(corpus_path, split="train", min_length=5000)
    with pytest.raises(UserError, match="no corpus here"):
        Corpus(corpus_path.parent)


def test_a_pickled_corpus_is_small_and_reads(corpus_path):
    corpus = Corpus(corpus_path)
    first = corpus[0]
    data = pickle.dumps(corpus)
    assert len(data) < 20_000
    assert torch.equal(pickle.loads(data)[0].positions, first.positions)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of the process from /proc")
def test_reading_takes_no_memory(kinase, tmp_path):
    """10 MB of atoms are read to the end; the process keeps none of them."""
    source = _write_archive(kinase, 1500, tmp_path / "many.npz")
    script = f"""
from pathlib import Path
from ophio.data import Corpus, Filters, Settings, prepare
path = Path({str(tmp_path / "corpus")!r})
prepare([Path({str(source)!r})], path, Settings(Filters(min_length=1)))
corpus = Corpus(path)
def private():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
[corpus[k].positions.sum() for k in range(0, len(corpus), 50)]
before = private()
[corpus[k].positions.sum() for k in range(len(corpus))]
print(private() - before)
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert sum(file.stat().st_size for file in (tmp_path / "corpus" / "shards").iterdir()) > 10e6
    assert int(run.stdout) < 2000  # kB


def test_backbone_archive(kinase, tmp_path):
    """Steps of CA, and N, C, O as high and low bytes, become coordinates again."""
    backbone = (kinase.center().positions[:, [1, 0, 2, 3]] * 100).round().int().numpy()
    ca, around = backbone[:, 0], backbone[:, 1:] - backbone[:, :1]
    np.savez(
        tmp_path / "backbones.npz",
        ca_step=np.diff(ca, axis=0, prepend=0).astype(np.int16),
        nco_low=(around & 255).astype(np.uint8),
        nco_high=(around >> 8).astype(np.int8),
        aatype=kinase.residue_type.byte().numpy(),
        lengths=np.array([kinase.num_residues]),
        ids=np.array(["adk"]),
        split=np.array(["train"]),
        cluster30=np.array([3]),
    )
    prepare([tmp_path / "backbones.npz"], tmp_path / "corpus", NO_LIMITS)
    protein = Corpus(tmp_path / "corpus")[0]
    assert protein.atom_mask.sum() == 4 * kinase.num_residues
    torch.testing.assert_close(protein.positions[:, :4], kinase.center().positions[:, :4], atol=0.02, rtol=0)


@pytest.mark.parametrize("damage", ["cut", "text", "lengths", "fields"])
def test_bad_archives_are_named(archive_file, tmp_path, damage):
    bad = tmp_path / "bad.npz"
    arrays = dict(np.load(archive_file))
    if damage == "cut":
        bad.write_bytes(archive_file.read_bytes()[:5000])
    elif damage == "text":
        bad.write_text("not a zip file")
    elif damage == "lengths":
        np.savez(bad, **(arrays | {"lengths": arrays["lengths"] + 1}))
    else:
        np.savez(bad, coords=arrays["coords"])
    with pytest.raises(UserError, match=r"bad\.npz"):
        prepare([bad], tmp_path / "corpus", NO_LIMITS)


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_archive_of_conformations(tmp_path):
    limits = ["filters.min_completeness=0", "num_workers=1"]
    said = _pipeline(f"input={SHARED / 'conformations.npz'}", f"output={tmp_path / 'corpus'}", *limits).stdout
    assert "2,794 entries" in said and "rejected: 0" in said
    corpus = Corpus(tmp_path / "corpus")
    assert corpus.info["splits"] == {"train": 2561, "val": 96, "test": 137}
    assert len(corpus.clusters) == 2794 and len(set(corpus.clusters.tolist())) == 485
    assert corpus.metadata(0)["kind"] == "experimental" and corpus.metadata(0)["group"] >= 0


# ------------------------------------------------------------------------------------------------------------- folders


def _pdb_text(protein, file: Path) -> str:
    write_structure(protein, file)
    return file.read_text()


@pytest.fixture(scope="module")
def messy_folder(kinase, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("messy")
    write_structure(kinase, folder / "good.pdb")
    (folder / "deep" / "er").mkdir(parents=True)
    write_structure(kinase.crop(0, 90), folder / "deep" / "er" / "good2.cif.gz")
    shutil.copy(datafiles.PDB_cm_gz, folder / "deep" / "water.pdb.gz")
    two = [_pdb_text(kinase.replace(chain_id=name), folder / "two.pdb") for name in "AB"]
    (folder / "two.pdb").write_text("".join(two).replace("END", "REM"))
    (folder / "empty.pdb").touch()
    (folder / "random.pdb").write_bytes(np.random.default_rng(0).bytes(4000))
    (folder / "random.bcif").write_bytes(np.random.default_rng(1).bytes(4000))
    (folder / "half.cif").write_text("data_x\nloop_\n_atom_site.group_PDB\n_atom_site.id\nATOM 1\nATOM")
    (folder / "half.pdb.gz").write_bytes(gzip.compress((folder / "good.pdb").read_bytes())[:3000])
    (folder / "bomb.pdb.gz").write_bytes(gzip.compress(bytes(3_000_000)))
    (folder / "huge.pdb").write_text("REMARK\n" * 400_000)
    (folder / "web.pdb").write_text("<html>404</html>")
    (folder / "notes.txt").write_text("ATOM")
    shutil.copy(datafiles.DCD, folder / "trajectory.dcd")
    short = kinase.crop(0, 12)
    write_structure(short, folder / "short.pdb")
    (folder / "link.pdb").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.pdb")
    (folder / "folder.pdb").mkdir()
    shutil.copy(folder / "short.pdb", os.path.join(os.fsencode(folder), b"name\xff.pdb"))
    return folder


MESSY = Settings(folder=FolderOptions(max_megabytes=1.0, origin="natural"))


@pytest.fixture(scope="module")
def messy_corpus(messy_folder, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("corpus") / "messy"
    prepare([messy_folder], output, MESSY, num_workers=2)
    return output


def test_messy_folder_is_prepared_to_the_end(messy_corpus):
    corpus = Corpus(messy_corpus)
    sources = Counter(corpus.metadata(k)["source"] for k in range(len(corpus)))
    assert sources == {"good.pdb": 1, "deep/er/good2.cif.gz": 1, "two.pdb": 2}
    reasons = {
        "deep/water.pdb.gz": "unreadable",
        "empty.pdb": "unreadable: the file is empty",
        "random.pdb": "unreadable",
        "random.bcif": "unreadable",
        "half.cif": "unreadable",
        "half.pdb.gz": "unreadable: damaged gzip",
        "bomb.pdb.gz": "size: larger than max_megabytes=1",
        "huge.pdb": "size: larger than max_megabytes=1",
        "web.pdb": "unreadable: a web page",
        "notes.txt": "not a structure file: .txt",
        "trajectory.dcd": "not a structure file: .dcd",
        "short.pdb": "length: 12 residues in one piece, below 30",
        "name\\udcff.pdb": "length: 12",
        "link.pdb": "not a file",
        "pipe.pdb": "not a file",
    }
    found = _rejected(messy_corpus)
    found = {name.replace(": chain A", ""): reason for name, reason in found.items()}
    assert found.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert found[name].startswith(reason), found[name]
    assert sum(corpus.info["rejected"].values()) == len(reasons)


def test_a_crash_in_a_parser_is_listed(messy_folder, tmp_path, monkeypatch):
    take = ophio_io._take

    def crash(path, where, chain, *arguments):
        return [][3] if path.name == "two.pdb" and chain == "B" else take(path, where, chain, *arguments)

    monkeypatch.setattr(ophio_io, "_take", crash)
    info = prepare([messy_folder], tmp_path / "corpus", MESSY)
    assert info["entries"] == 3
    assert _rejected(tmp_path / "corpus")["two.pdb: chain B"] == "error: IndexError: list index out of range"


@pytest.fixture
def deadly(monkeypatch, tmp_path) -> Path:
    """A folder in which two files kill the process that reads them (forked processes inherit that)."""
    read, parent = folder.read_entries, os.getpid()

    def die(root, relative, options):
        if relative.startswith("killer"):
            assert os.getpid() != parent
            os.kill(os.getpid(), signal.SIGKILL)
        return read(root, relative, options)

    monkeypatch.setattr(folder, "read_entries", die)
    monkeypatch.setattr(workers, "START_METHOD", "fork")
    return tmp_path / "deadly"


@pytest.mark.parametrize("largest_chunk", [1, 4])
def test_a_file_that_kills_its_reader_is_listed_and_the_rest_goes_in(kinase, deadly, monkeypatch, largest_chunk):
    deadly.mkdir()
    for k in range(10):
        write_structure(kinase.crop(k, k + 50), deadly / f"f{k}.pdb")
    for name in ("f33.pdb", "killer1.pdb", "killer2.pdb"):
        shutil.copy(deadly / "f3.pdb", deadly / name)
    shutil.copy(deadly / "f3.pdb", deadly / "f0killer.pdb")
    monkeypatch.setattr(preparation, "CHUNKS_WANTED", 13 // largest_chunk)
    info = prepare([deadly], deadly.parent / "corpus", NO_LIMITS, num_workers=3)
    assert info["entries"] == 12 and info["rejected"] == {"reader died": 2}
    found = _rejected(deadly.parent / "corpus")
    assert found == {name: preparation.READER_DIED for name in ("killer1.pdb", "killer2.pdb")}


def _dies_at_first(mark: Path) -> str:
    if mark.name == "0" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return mark.name


def test_a_job_that_died_beside_others_is_done_again_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "START_METHOD", "fork")
    jobs = [tmp_path / str(k) for k in range(4)]
    assert dict(workers.run_each(_dies_at_first, jobs, num_workers=3)) == {job: job.name for job in jobs}
    assert (tmp_path / "0").exists()


def test_workers_that_cannot_start_are_told(tmp_path, monkeypatch):
    """As those of a script without `if __name__ == "__main__"`: nothing is wrong with the files."""
    monkeypatch.setattr(workers, "START_METHOD", "fork")
    monkeypatch.setattr(workers, "_start_worker", partial(os._exit, 1))
    with pytest.raises(UserError, match="__main__"):
        list(workers.run_each(len, ["job"], num_workers=2))


def test_workers_do_not_matter(messy_folder, messy_corpus, tmp_path):
    prepare([messy_folder], tmp_path / "corpus", MESSY)
    for name in ("index.arrow", "corpus.json", "rejected.csv"):
        assert (tmp_path / "corpus" / name).read_bytes() == (messy_corpus / name).read_bytes()


def test_coordinates_of_files_are_exact(messy_corpus, kinase):
    corpus = Corpus(messy_corpus)
    index = next(k for k in range(len(corpus)) if corpus.metadata(k)["source"] == "good.pdb")
    torch.testing.assert_close(corpus[index].positions, kinase.center().positions, atol=2e-5, rtol=0)
    assert torch.equal(corpus[index].residue_number, kinase.residue_number)


def test_clusters_decide_the_split(kinase, tmp_path):
    (tmp_path / "in").mkdir()
    for k in range(40):
        write_structure(kinase.crop(k, k + 40), tmp_path / "in" / f"s{k}.pdb")
    table = tmp_path / "clusters.tsv"
    table.write_text("".join(f"c{k % 10}\ts{k}\n" for k in range(40)))
    options = FolderOptions(clusters=table, split={"train": 0.5, "test": 0.5})
    info = prepare([tmp_path / "in"], tmp_path / "corpus", Settings(folder=options))
    corpus = Corpus(tmp_path / "corpus")
    assert len(set(corpus.clusters.tolist())) == 10
    pairs = {(corpus.metadata(k)["cluster30"], corpus.metadata(k)["split"]) for k in range(40)}
    assert len(pairs) == 10 and info["splits"].keys() == {"train", "test"}
    table.write_text("one_column\n")
    with pytest.raises(UserError, match="line 1"):
        prepare([tmp_path / "in"], tmp_path / "other", Settings(folder=FolderOptions(Chains.first, clusters=table)))


# ------------------------------------------------------------------------------------------------------------- filters


def _entry(protein) -> Entry:
    return Entry(protein, "x", "x", "natural", "train", cluster30=0)


def _without(protein, residues, slots):
    mask = protein.atom_mask.clone()
    mask[residues, slots] = False
    return protein.replace(atom_mask=mask).with_positions(protein.positions * mask[..., None])


@pytest.mark.parametrize(
    ("change", "filters", "reason"),
    [
        (lambda p: p, Filters(), None),
        (lambda p: p, Filters(min_length=300), "length: 214"),
        (lambda p: p, Filters(max_length=100), "length: 214"),
        (lambda p: p, Filters(origins=["designed"]), "origin: natural"),
        (lambda p: p, Filters(splits=["val"]), "split: train"),
        (lambda p: _without(p, slice(None), slice(4, None)), Filters(), "completeness: 0.5"),
        (lambda p: _without(p, slice(0, 214, 4), 3), Filters(), "completeness: 0.94 of the backbone"),
        (lambda p: _without(p, 100, slice(None)), Filters(breaks=Breaks.reject), "chain break: residue 101"),
        (lambda p: p.with_positions(1.2 * p.positions), Filters(breaks=Breaks.keep), "geometry: backbone bonds"),
        (lambda p: p.with_positions(0.96 * p.positions), Filters(max_bond_deviation=None), None),
        (lambda p: p.with_positions(0.85 * p.positions), Filters(max_bond_deviation=None), "geometry: "),
    ],
)
def test_filters(kinase, change, filters, reason):
    outcome = accept(_entry(change(kinase)), filters)
    if reason is None:
        assert isinstance(outcome, Entry)
    else:
        assert isinstance(outcome, str) and outcome.startswith(reason), outcome


def test_chains_are_cut_at_breaks(kinase):
    assert longest_piece(kinase).num_residues == 214
    shift = torch.zeros(214, 1, 1)
    shift[150:] = 10.0
    moved = kinase.with_positions(kinase.positions + shift)
    assert longest_piece(moved).residue_number.tolist() == list(range(1, 151))
    no_ca = _without(moved, [40, 60], 1)
    assert longest_piece(no_ca).residue_number.tolist() == list(range(62, 151))
    assert longest_piece(_without(kinase, slice(None), 1)).num_residues == 0
    assert accept(_entry(_without(kinase, slice(None), 1)), Filters()).startswith("length: 0 residues")


def test_windows_cover_the_chain(kinase):
    pieces = windows(_entry(kinase), 100)
    assert [piece.protein.num_residues for piece in pieces] == [71, 71, 72]
    assert [piece.id for piece in pieces] == ["x_1-71", "x_72-142", "x_143-214"]
    assert torch.cat([piece.protein.residue_number for piece in pieces]).tolist() == list(range(1, 215))
    assert windows(_entry(kinase), None)[0].protein is kinase


# ------------------------------------------------------------------------------------------------- repeated preparation


def test_killed_preparation_goes_on(archive_file, corpus_path, tmp_path):
    output = tmp_path / "corpus"
    script = f"""
from pathlib import Path
from ophio.data import Filters, Settings, prepare, preparation
import time
write = preparation.write_shard
def slowly(chunk, output, settings):
    time.sleep(0.1)
    write(chunk, output, settings)
preparation.write_shard = slowly
prepare([Path({str(archive_file)!r})], Path({str(output)!r}),
        Settings(Filters(min_length=1, min_completeness=0.0, max_bond_deviation=None)))
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.time() + 60
    while len(list(output.glob("shards/*.arrow"))) < 5 and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {file: file.stat().st_mtime_ns for file in output.glob("shards/*.arrow")}
    assert 5 <= len(done) < 60
    (output / "shards" / "00063.1.tmp").write_bytes(b"half a shard")
    with pytest.raises(UserError, match="did not finish"):
        Corpus(output)

    prepare([archive_file], output, NO_LIMITS)
    assert all(file.stat().st_mtime_ns == time for file, time in done.items())
    assert not list(output.glob("shards/*.tmp"))
    assert (output / "index.arrow").read_bytes() == (corpus_path / "index.arrow").read_bytes()
    assert (output / "corpus.json").read_bytes() == (corpus_path / "corpus.json").read_bytes()


def test_other_settings_need_another_output(kinase, tmp_path):
    archive_file = _write_archive(kinase, 50, tmp_path.parent / "fifty.npz")
    prepare([archive_file], tmp_path / "corpus", NO_LIMITS)
    stricter = Settings(Filters(min_length=100), crop_length=60)
    with pytest.raises(UserError, match="other inputs or settings"):
        prepare([archive_file], tmp_path / "corpus", stricter)
    info = prepare([archive_file], tmp_path / "corpus", stricter, overwrite=True)
    assert Corpus(tmp_path / "corpus").lengths.max() <= 60 and info["rejected"]["length"] > 10
    with pytest.raises(UserError, match="not empty, and not a corpus"):
        prepare([archive_file], tmp_path, NO_LIMITS, overwrite=True)
    with pytest.raises(UserError, match="no chain passed"):
        prepare([archive_file], tmp_path / "none", Settings(Filters(min_length=1000)))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("filters.min_lenght=5", "filters.min_lenght"),
        ("filters.min_length=abc", "filters.min_length"),
        ("folder.chains=some", "folder.chains"),
        ("num_workers=two", "num_workers"),
        ("num_workers=0", "num_workers"),
        ("crop_length=0", "crop_length"),
        ("+filters.more=1", "filters.more"),
        ("inptu=x", "inptu"),
        ("input=/nowhere", "/nowhere: neither a folder"),
        ("input=3", "input=3: expected str"),
    ],
)
def test_wrong_options_are_named(tmp_path, monkeypatch, capsys, wrong, named):
    """One line and exit status 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", "input=x", "output=y", wrong])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "pipelines" / "prepare_data.py"), run_name="__main__")
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert named in said and said.count("\n") == 1 and said.startswith("prepare_data: ")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------ sampling


def test_an_epoch_draws_one_of_each_cluster():
    clusters = np.repeat(np.arange(100), np.arange(1, 101))
    counts = Counter()
    for epoch in range(300):
        drawn = one_per_cluster(clusters, np.random.default_rng(epoch))
        assert sorted(clusters[drawn]) == list(range(100))
        counts.update(index for index in drawn.tolist() if clusters[index] == 9)
    assert len(counts) == 10 and min(counts.values()) > 10  # 30 expected of each


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("balanced", [True, False])
def test_bucket_batches(corpus_path, balanced, world_size):
    corpus = Corpus(corpus_path)
    clusters = corpus.clusters if balanced else None
    ranks = [
        LengthBucketBatchSampler(corpus.lengths, EDGES, 512, clusters, seed=2, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    epochs = []
    for epoch in range(3):
        for sampler in ranks:
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in ranks]
        assert [len(share) for share in shares] == [len(ranks[0])] * world_size
        batches = [batch for share in shares for batch in share]
        for batch in batches:
            buckets = np.searchsorted(EDGES, corpus.lengths[batch.indices])
            assert len(set(buckets)) == 1 and EDGES[buckets[0]] * len(batch.indices) <= 512
        assert len({batch.seed for batch in batches}) == len(batches)
        epochs.append(sorted(index for batch in batches for index in batch.indices))
    assert epochs[0] != epochs[1] or not balanced
    if world_size == 1 and balanced:
        assert sorted(corpus.clusters[epochs[0]]) == list(range(60))
    if not balanced:
        assert set(epochs[0]) == set(range(300))


def test_evaluation_sees_every_chain_once(corpus_path):
    corpus = Corpus(corpus_path)
    sampler = LengthBucketBatchSampler(corpus.lengths, EDGES, 512, shuffle=False)
    first = list(sampler)
    sampler.set_epoch(5)
    assert list(sampler) == first
    assert sorted(index for batch in first for index in batch.indices) == list(range(300))


def test_batch_sampler_starts_in_the_middle(corpus_path):
    corpus = Corpus(corpus_path)
    sampler = LengthBucketBatchSampler(corpus.lengths, EDGES, 512, corpus.clusters)
    whole = list(sampler)
    sampler.start_batch = 5
    assert list(sampler) == whole[5:] and len(sampler) == len(whole)
    assert list(sampler) == whole


@pytest.mark.parametrize(
    ("edges", "max_residues", "said"),
    [((64, 100), 512, "longest chain has 120"), ((64, 32, 128), 512, "rising"), ((128,), 100, "max_residues=100")],
)
def test_batch_sampler_names_wrong_options(corpus_path, edges, max_residues, said):
    with pytest.raises(UserError, match=said):
        LengthBucketBatchSampler(Corpus(corpus_path).lengths, edges, max_residues)


def test_random_crop(kinase):
    starts = {int(random_crop(kinase, 50, torch.Generator().manual_seed(k)).residue_number[0]) for k in range(50)}
    assert len(starts) > 20 and min(starts) >= 1 and max(starts) <= 165
    crop = random_crop(kinase, 50, torch.Generator().manual_seed(0))
    assert crop.num_residues == 50 and crop.ca.mean(0).norm() < 1e-4
    assert random_crop(kinase, 500, torch.Generator()).num_residues == 214


# ------------------------------------------------------------------------------------------------------------- loading


def test_batches_of_the_data_module(corpus_path):
    data = CorpusDataModule(corpus_path, max_residues=256, bucket_edges=EDGES, crop_length=80)
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) > 10
    for batch in batches:
        assert batch.num_residues in EDGES and batch.residue_type.numel() <= 256
        lengths = batch.residue_mask.sum(1)
        assert lengths.max() <= 80
        assert (batch.ca.sum(1) / lengths[:, None]).norm(dim=-1).max() < 1e-3
    clusters = len(set(data.corpus("train").clusters.tolist()))
    assert sum(len(batch.residue_type) for batch in batches) == clusters == 48
    assert sum(len(batch.residue_type) for batch in data.val_dataloader()) == 30


def test_workers_load_the_same(corpus_path):
    loaders = [CorpusDataModule(corpus_path, 512, EDGES, 60, num_workers=n).train_dataloader() for n in (0, 2)]
    here, there = map(list, loaders)
    assert len(here) == len(there)
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.positions, b.positions)
    loaders[1].sampler.set_epoch(1)
    assert not all(torch.equal(a.residue_type, b.residue_type) for a, b in zip(here, loaders[1], strict=False))


class _Listener(lightning.LightningModule):
    """Learns nothing and remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[float] = []

    def training_step(self, batch, index):
        self.seen.append(float(batch.positions.double().pow(2).sum()))
        return self.weight * 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(corpus_path: Path, folder: Path, checkpoint: Path | None = None, num_workers: int = 0) -> list[float]:
    model = _Listener()
    saver = lightning.pytorch.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=7, save_top_k=-1)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, callbacks=[saver], enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    data = CorpusDataModule(corpus_path, max_residues=256, bucket_edges=EDGES, crop_length=60, num_workers=num_workers)
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=False if checkpoint else None)
    return model.seen


@pytest.mark.filterwarnings("ignore")
def test_training_goes_on_inside_an_epoch(corpus_path, tmp_path):
    """A run that is resumed from a checkpoint sees exactly the batches that the whole run saw after it."""
    whole = _fit(corpus_path, tmp_path)
    assert len(set(whole)) == len(whole) > 14
    for step in (7, len(whole) // 7 * 7):
        assert _fit(corpus_path, tmp_path / "again", tmp_path / f"step={step}.ckpt") == whole[step:]
    assert _fit(corpus_path, tmp_path / "again", tmp_path / "step=7.ckpt", num_workers=1) == whole[7:]
