"""The `ophio` command as users call it: what it writes, what it says, and that bad input costs one line."""

import csv
import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from adk import DATA

from ophio import __version__, interpolation, pretrained
from ophio.autoencoder import Autoencoder
from ophio.cli import main
from ophio.constants import CA
from ophio.diffusion.samplers import SAMPLERS
from ophio.evaluation.folding.esmfold import WEIGHTS as ESMFOLD_WEIGHTS
from ophio.evaluation.folding.trrosetta import NETWORKS
from ophio.evaluation.structures import LONGEST, SHORTEST
from ophio.io import StructureWarning, read_structure, write_structure
from ophio.latents import fingerprint, load_latent
from ophio.metrics import ca_rmsd
from ophio.protein import Protein
from ophio.reconstruction import COLUMNS

ROOT = Path(__file__).parents[1]
OPEN, CLOSED, TRYPSIN_INHIBITOR = DATA / "adk_open.pdb", DATA / "adk_closed.pdb", DATA / "mmcif" / "5PTI.cif.gz"
PROTEASE = DATA / "1hvr.pdb"  # two chains, each with an oxidised cysteine at 67
NODES = 23  # of 214 residues, after two levels of kernel 5 and stride 3


def _save_model(folder: Path, seed: int) -> Path:
    arguments = {"channels": [8, 8, 16], "strides": [3, 3], "latent_channels": 8}
    torch.manual_seed(seed)
    pretrained.save(Autoencoder(**arguments), arguments, folder, {"name": folder.name, "description": "random weights"})
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small model of random weights: what it gives back is nonsense, but the same nonsense every time."""
    return _save_model(tmp_path_factory.mktemp("models") / "tiny", seed=0)


@pytest.fixture
def ophio(capsys, model, tmp_path, monkeypatch):
    """Runs the command (with `model`, in `tmp_path`): exit status, lines printed, lines of complaint."""
    monkeypatch.chdir(tmp_path)

    def run(command: str, *arguments: str | Path) -> tuple[int, list[str], list[str]]:
        options = [] if command == "models" or "--model" in arguments else ["--model", str(model)]
        status = main([command, *map(str, arguments), *options])
        said = capsys.readouterr()
        return status, said.out.splitlines(), said.err.splitlines()

    return run


def _table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def _names(folder: str | Path) -> list[str]:
    return sorted(os.listdir(folder))


def _read(path: str | Path, chain: str | None = None) -> Protein:
    """Without the warnings of chain breaks: random weights make plenty."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StructureWarning)
        return read_structure(path, chain)


def _same_structure(one: str, other: str) -> bool:
    """The same residues and atoms, and coordinates to the last digit of the format, in which rounding may differ."""
    a, b = _read(one), _read(other)
    near = (a.positions - b.positions).abs().max() < 1.5e-3
    return _same_residues(a, b) and a.sequence == b.sequence and torch.equal(a.atom_mask, b.atom_mask) and bool(near)


def _same_residues(a: Protein, b: Protein) -> bool:
    fields = ("residue_number", "insertion_code")
    return a.chain_id == b.chain_id and all(torch.equal(getattr(a, name), getattr(b, name)) for name in fields)


# -------------------------------------------------------------------------------------------------------- what it does


def test_reconstruct(ophio, tmp_path):
    """PDB, mmCIF, gzipped: residues keep their names, the report is that of the files written."""
    inputs = {"adk_open": OPEN, "adk_closed": CLOSED, "5PTI": TRYPSIN_INHIBITOR}
    inputs |= {"19hc": DATA / "19hc.pdb.gz", "4E43": DATA / "4E43.pdb"}
    status, out, err = ophio("reconstruct", *inputs.values(), "--out", "out/deep")
    assert status == 0 and out[-2].startswith("5 structures in out/deep")
    chains, hint = {"19hc": "A, B", "4E43": "A, B, C"}, "took A; name another with chain= or --chain"
    assert err == [f"ophio: {inputs[name]}: protein chains {found}: {hint}" for name, found in chains.items()]
    files = ["19hc.pdb", "4E43.pdb", "5PTI.pdb", "adk_closed.pdb", "adk_open.pdb", "index.html", "metrics.csv"]
    assert _names("out/deep") == files
    rows = _table(tmp_path / "out/deep")
    assert list(rows[0]) == ["file", "structure", "chain", *COLUMNS]
    for row, (name, path) in zip(rows, inputs.items(), strict=True):
        true, written = _read(path, row["chain"]), _read(f"out/deep/{name}.pdb")
        assert _same_residues(true, written)
        assert (row["file"], row["structure"]) == (str(path), f"{name}.pdb")
        assert int(row["residues"]) == true.num_residues and len(written.sequence) == true.num_residues
        correct = sum(a == b for a, b in zip(true.sequence, written.sequence)) / true.num_residues
        assert float(row["residue_accuracy"]) == pytest.approx(correct)
        rmsd = ca_rmsd(written.positions, true.positions, true.atom_mask)
        assert float(row["ca_rmsd"]) == pytest.approx(rmsd.item(), abs=2e-3)
    assert int(rows[0]["nodes"]) == NODES
    assert float(rows[0]["numbers_per_residue"]) == pytest.approx(NODES * (3 + 4 * 8) / 214)


@pytest.mark.parametrize("suffix", ["pdb", "cif"])
def test_decoding_what_was_encoded_is_the_reconstruction(ophio, model, suffix):
    ophio("reconstruct", OPEN, TRYPSIN_INHIBITOR, "--out", "whole", "--format", suffix)
    status, out, _ = ophio("encode", OPEN, TRYPSIN_INHIBITOR, "--out", "latents")
    assert status == 0 and out[0] == f"latents/adk_open.npz: {NODES}x4x8 features, 3.8 numbers a residue"
    assert _names("latents") == ["5PTI.npz", "adk_open.npz"]
    status = main(["decode", "latents", "--out", "decoded", "--format", suffix])  # the latents name their model
    assert status == 0 and _names("decoded") == [f"5PTI.{suffix}", f"adk_open.{suffix}"]
    for name in _names("decoded"):
        assert _same_structure(f"decoded/{name}", f"whole/{name}")
    for name in ("adk_open", "5PTI"):
        latent, encoder, weights = load_latent(f"latents/{name}.npz")
        assert encoder == str(model) and weights == fingerprint(pretrained.load(model))


def test_the_model_of_latents_is_found_from_another_folder(ophio, model, monkeypatch, tmp_path):
    shutil.copytree(model, "mine")
    ophio("encode", OPEN, "--out", ".", "--model", "mine")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert main(["decode", "../adk_open.npz", "--out", "."]) == 0
    assert main(["decode", "../adk_open.npz", "--out", "again", "--model", "../mine"]) == 0


def test_folders_give_the_structures_in_them(ophio):
    for folder in ("in", "in/below", "in/folder.pdb", "nothing"):
        Path(folder).mkdir()
    shutil.copy(OPEN, "in/a.pdb")
    shutil.copy(TRYPSIN_INHIBITOR, "in/B.CIF.GZ")
    shutil.copy(OPEN, "in/below/c.pdb")
    Path("in/notes.txt").write_text("ATOM")
    status, _, err = ophio("encode", "in", "in/a.pdb", "--out", "out")
    assert (status, err) == (0, []) and _names("out") == ["B.npz", "a.npz"]
    for command in ("encode", "decode"):
        status, _, err = ophio(command, "nothing", "--out", "other")
        assert status == 2 and len(err) == 1 and "nothing: no ." in err[0] and not Path("other").exists()


def test_equal_names_are_numbered_and_nothing_is_overwritten(ophio):
    for name in ("one/a.pdb", "two/a.pdb", "two/A.cif", "two/a_2.pdb"):
        Path(name).parent.mkdir(exist_ok=True)
        write_structure(read_structure(OPEN).crop(len(name), 60), name)
    status, _, _ = ophio("reconstruct", "one", "two", "--out", "out")
    assert status == 0
    assert _names("out") == sorted(["a.pdb", "A_2.pdb", "a_3.pdb", "a_2_2.pdb", "index.html", "metrics.csv"])
    for row in _table(Path("out")):
        assert _read(row["file"]).num_residues == _read(f"out/{row['structure']}").num_residues


def test_an_input_is_never_overwritten(ophio, tmp_path):
    shutil.copy(OPEN, "a.pdb")
    for out in (".", "./", str(tmp_path), "../" + tmp_path.name):
        status, _, err = ophio("reconstruct", "a.pdb", "--out", out)
        assert status == 2 and len(err) == 1 and "would overwrite" in err[0] and "--out" in err[0]
    assert Path("a.pdb").read_bytes() == OPEN.read_bytes() and _names(".") == ["a.pdb"]
    assert ophio("reconstruct", "a.pdb", "--out", ".", "--format", "cif")[0] == 0


def test_chains_and_models_are_chosen(ophio):
    write_structure([read_structure(OPEN).replace(chain_id=chain) for chain in "AA"], "models.pdb")
    for options, chain, number in ((["--chain", "B"], "B", 99), (["--chain", "A"], "A", 99)):
        assert ophio("reconstruct", PROTEASE, "--skip-nonstandard", "--out", chain, *options)[0] == 0
        written = _read(f"{chain}/1hvr.pdb")
        assert written.chain_id == chain == _table(Path(chain))[0]["chain"] and written.num_residues == number - 1
    assert ophio("encode", "models.pdb", "--model-number", "2", "--out", "out")[0] == 0
    wrong = (["--model-number", "3"], "no model 3: the file has 2"), (["--chain", "Z"], "no protein chain Z: it has A")
    for options, reason in wrong:
        status, _, err = ophio("encode", "models.pdb", "--out", "none", *options)
        assert status == 2 and err == [f"ophio: models.pdb: {reason}" + (", counted from 1" if "3" in reason else "")]


def test_masked_residues_are_left_out_and_not_invented(ophio):
    """A non-standard residue, and one without CA: not encoded, not decoded; the others keep their places."""
    protein = read_structure(PROTEASE, chain="A", skip_nonstandard=True)
    mask = protein.atom_mask.clone()
    mask[[20, 21, 40], CA] = False
    write_structure(protein.replace(atom_mask=mask).with_positions(protein.positions), "gaps.pdb")
    status, _, err = ophio("reconstruct", PROTEASE, "--out", "out")
    assert status == 2 and "residue CSO 67 is not one of the 20" in err[-1] and "--skip-nonstandard" in err[-1]
    status, out, _ = ophio("reconstruct", PROTEASE, "gaps.pdb", "--skip-nonstandard", "--out", "out")
    assert status == 0 and [int(row["residues"]) for row in _table(Path("out"))] == [98, 95]
    ophio("encode", PROTEASE, "gaps.pdb", "--skip-nonstandard", "--out", "latents")
    ophio("decode", "latents", "--out", "decoded")
    everyone = set(range(1, 100)) - {67}
    for name, missing in (("1hvr", set()), ("gaps", {21, 22, 41})):
        assert _same_structure(f"decoded/{name}.pdb", f"out/{name}.pdb")
        written = _read(f"decoded/{name}.pdb")
        assert set(written.residue_number.tolist()) == everyone - missing and written.residue_mask.all()


@pytest.mark.parametrize("length", [1, 2, 4])
def test_short_chains(ophio, length):
    write_structure(read_structure(OPEN).crop(50, 50 + length), "short.pdb")
    assert ophio("reconstruct", "short.pdb", "--out", "out")[0] == 0
    assert _read("out/short.pdb").residue_number.tolist() == list(range(51, 51 + length))


def test_a_chain_of_a_thousand_residues(ophio):
    """The latent grows with the chain, not with its square."""
    one = read_structure(OPEN).center()
    places = [torch.tensor([60.0 * (k % 3), 60.0 * (k // 3), 0.0]) for k in range(5)]
    positions = torch.cat([one.positions + place for place in places])
    mask, types = one.atom_mask.repeat(5, 1), one.residue_type.repeat(5)
    long = Protein.from_atoms(positions * mask[..., None], mask, types)
    write_structure(long, "long.pdb")
    status, _, _ = ophio("reconstruct", "long.pdb", "--out", "out")
    (row,) = _table(Path("out"))
    assert status == 0 and int(row["residues"]) == 1070 and int(row["nodes"]) < 5.3 * NODES
    assert _read("out/long.pdb").num_residues == 1070


def test_chain_ids_beyond_pdb_need_mmcif(ophio):
    write_structure(read_structure(OPEN).crop(0, 40).replace(chain_id="HEAVY"), "wide.cif")
    status, _, err = ophio("reconstruct", "wide.cif", "--out", "out")
    assert status == 2 and len(err) == 1 and "chain id 'HEAVY'" in err[0] and "--format cif" in err[0]
    assert ophio("reconstruct", "wide.cif", "--out", "out", "--format", "cif")[0] == 0
    assert _read("out/wide.cif").chain_id == "HEAVY"


def test_released_models_are_listed_and_used_by_name(ophio, model, monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "RELEASED", tmp_path / "released")
    status, out, err = ophio("models")
    assert (status, out) == (0, []) and "no released models" in err[0]
    for suffix in ("json", "safetensors"):
        (tmp_path / "released").mkdir(exist_ok=True)
        shutil.copy(model / f"model.{suffix}", tmp_path / "released" / f"small.{suffix}")
    status, out, err = ophio("models")
    assert (status, err) == (0, []) and out == ["small: random weights (0.1 M parameters)"]
    assert ophio("encode", OPEN, "--out", "out", "--model", "small")[0] == 0
    assert load_latent("out/adk_open.npz")[1] == "small"
    assert main(["decode", "out", "--out", "out"]) == 0


@pytest.mark.skipif("mini" not in pretrained.available(), reason="this installation has no released model `mini`")
def test_mini_reconstructs(ophio):
    """Both halves of a kinase, a trypsin inhibitor, a protease with a masked residue."""
    for start in (0, 86):
        write_structure(read_structure(OPEN).crop(start, start + 128), f"piece{start}.pdb")
    inputs = ["piece0.pdb", "piece86.pdb", TRYPSIN_INHIBITOR, PROTEASE]
    status, _, _ = ophio("reconstruct", *inputs, "--skip-nonstandard", "--out", "out", "--model", "mini")
    assert status == 0
    for row in _table(Path("out")):
        assert int(row["residues"]) <= 128
        assert float(row["ca_rmsd"]) < 0.5 and float(row["residue_accuracy"]) > 0.95, row


# ----------------------------------------------------------------------------------------------------- what goes wrong


def test_what_can_be_done_is_done(ophio):
    """Of several inputs, each that fails has its line."""
    Path("broken.pdb").write_bytes(OPEN.read_bytes()[:3000])
    Path("page.cif").write_text("<html>404</html>")
    Path("half.pdb.gz").write_bytes(gzip.compress(OPEN.read_bytes())[:2000])
    Path("folder.pdb").mkdir()
    inputs = ["broken.pdb", OPEN, "page.cif", "absent.pdb", "half.pdb.gz", "notes.doc", TRYPSIN_INHIBITOR]
    Path("notes.doc").touch()
    status, out, err = ophio("reconstruct", *inputs, "--out", "out")
    assert status == 2 and _names("out") == ["5PTI.pdb", "adk_open.pdb", "index.html", "metrics.csv"]
    assert [row["file"] for row in _table(Path("out"))] == [str(OPEN), str(TRYPSIN_INHIBITOR)]
    named = ["broken.pdb: ", "page.cif: a web page", "absent.pdb: ", "half.pdb.gz: damaged gzip", "notes.doc: unknown"]
    assert len(err) == len(named) + 1 and err[-1] == "ophio: 5 of 7 files failed"
    for line, start in zip(err, named):
        assert line.startswith(f"ophio: {start}")
    status, out, err = ophio("reconstruct", "broken.pdb", "--out", "none")
    assert status == 2 and out == [] and len(err) == 1 and _names("none") == []


def test_a_missing_model_is_told_with_those_that_are_there(ophio, model, monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "RELEASED", tmp_path / "released")
    (tmp_path / "released").mkdir()
    shutil.copy(model / "model.json", tmp_path / "released" / "small.json")
    (tmp_path / "empty").mkdir()
    for name in ("mimi", "no/such/folder", "empty", "some.safetensors"):
        status, out, err = ophio("encode", OPEN, "--out", "out", "--model", name)
        assert status == 2 and out == [] and len(err) == 1 and name in err[0] and "small" in err[0]
    assert not Path("out").exists()


def test_a_damaged_model_is_told(ophio, model):
    shutil.copytree(model, "cut")
    Path("cut/model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-100])
    shutil.copytree(model, "text")
    Path("text/model.json").write_text("{")
    for name in ("cut", "text"):
        status, _, err = ophio("encode", OPEN, "--out", "out", "--model", name)
        assert status == 2 and len(err) == 1 and err[0].startswith(f"ophio: {name}/model.")


def test_latents_of_another_model_are_refused(ophio, model, tmp_path):
    """Of the same architecture, too: the atoms would be nonsense without any error."""
    other = _save_model(tmp_path / "other", seed=1)
    ophio("encode", OPEN, "--out", "latents")
    status, out, err = ophio("decode", "latents", "--out", "out", "--model", other)
    assert status == 2 and out == [] and _names("out") == []
    assert len(err) == 1 and "latents/adk_open.npz: encoded by" in err[0]
    assert str(model) in err[0] and str(other) in err[0]
    ophio("encode", OPEN, "--out", "latents", "--model", other)
    shutil.rmtree(other)
    status = main(["decode", "latents", "--out", "out"])
    assert status == 2 and _names("out") == []
    assert ophio("decode", "latents", "--out", "out", "--model", "gone")[0] == 2


def test_damaged_latents_are_refused(ophio):
    ophio("encode", OPEN, "--out", "good")
    whole = Path("good/adk_open.npz").read_bytes()
    arrays = dict(np.load("good/adk_open.npz"))
    Path("bad").mkdir()
    Path("bad/cut.npz").write_bytes(whole[: len(whole) // 2])
    Path("bad/end.npz").write_bytes(whole[:-30])
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 255
    Path("bad/flipped.npz").write_bytes(flipped)
    Path("bad/empty.npz").touch()
    Path("bad/text.npz").write_bytes(OPEN.read_bytes())
    with open("bad/array.npz", "wb") as file:
        np.save(file, np.zeros(3))
    np.savez("bad/other.npz", **{name: arrays[name] for name in ("positions", "features")})
    np.savez("bad/future.npz", **arrays | {"format": 2})
    np.savez("bad/nodes.npz", **arrays | {"mask": arrays["mask"][:-1]})
    np.savez("bad/whole_numbers.npz", **arrays | {"features": arrays["features"].astype(int)})
    np.savez("bad/nan.npz", **arrays | {"positions": arrays["positions"] * np.nan})
    np.savez("bad/objects.npz", **arrays | {"features": np.array([{}])})
    status, out, err = ophio("decode", "bad", "bad/absent.npz", CLOSED, "good", "--out", "out")
    assert status == 2 and _names("out") == ["adk_open.pdb"] and len(out) == 1
    assert len(err) == 15 and err[-1] == "ophio: 14 of 15 files failed"
    for line, name in zip(err, [*_names("bad"), "absent.npz", CLOSED.name]):
        assert name in line, line
    assert sum("not a latent that `ophio encode` wrote, or incomplete" in line for line in err) == 9


@pytest.mark.parametrize("device", ["cuda", "nonsense"])
def test_devices_that_are_not_there(ophio, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    for command, path in (("reconstruct", OPEN), ("encode", OPEN)):
        status, _, err = ophio(command, path, "--out", "out", "--device", device)
        assert status == 2 and len(err) == 1 and err[0].startswith(f"ophio: --device {device}: ")
    assert not Path("out").exists()


def test_output_folders_that_cannot_be(ophio):
    Path("file").write_text("precious")
    ophio("encode", OPEN, "--out", "latents")
    for command, path in (("reconstruct", OPEN), ("encode", OPEN), ("decode", "latents")):
        for out in ("file", "file/below"):
            status, _, err = ophio(command, path, "--out", out)
            assert status == 2 and len(err) == 1 and err[0].startswith(f"ophio: --out {out}: ")
    assert Path("file").read_text() == "precious"


def test_wrong_options(capsys):
    for arguments in (
        [], ["reconstuct", "a.pdb"], ["encode", "a.pdb"], ["encode", "--out", "x"],
        ["decode", "a", "--out", "x", "--chain", "A"], ["encode", "a.pdb", "--out", "x", "--model-number", "one"],
        ["reconstruct", "a", "--out", "x", "--format", "xyz"], ["encode", "a.pdb", "--out", "x", "--skip-nonstandart"],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as end:
            main(arguments)
        said = capsys.readouterr().err
        assert end.value.code == 2 and said.startswith("usage: ophio") and "Traceback" not in said


def test_help_names_what_the_library_has(capsys):
    """The parser does not import what it describes, so that `ophio --help` starts at once."""
    told = {
        "sample": (*SAMPLERS, "mini_diffusion"),
        "evaluate": (ESMFOLD_WEIGHTS, f"1 to {NETWORKS}", f"{SHORTEST}-{LONGEST}"),
        "interpolate": (*interpolation.METHODS, f"default: {interpolation.METHOD}", f"default: {interpolation.MODEL}"),
        "reconstruct": ("default: mini)",),
    }
    for command, words in told.items():
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert all(word in text for word in words), command


# ------------------------------------------------------------------------------------------------------- as a process


def _process(*arguments: str | Path, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ophio.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_help_and_version_start_at_once():
    started = time.time()
    helps = _process("--help").communicate()[0]
    assert time.time() - started < 2
    assert all(name in helps for name in ("reconstruct", "encode", "decode", "models"))
    assert _process("--version").communicate()[0] == f"ophio {__version__}\n"


def test_an_interrupted_run_leaves_only_complete_files(tmp_path, model):
    (tmp_path / "in").mkdir()
    shutil.copy(OPEN, tmp_path / "one.pdb")
    for k in range(400):
        os.link(tmp_path / "one.pdb", tmp_path / f"in/f{k:03d}.pdb")
    process = _process("reconstruct", "in", "--out", "out", "--model", model, cwd=tmp_path)
    deadline = time.time() + 60
    while len(list((tmp_path / "out").glob("f*.pdb"))) < 3 and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130 and "Traceback" not in err and "interrupted" in err.splitlines()[-1]
    *written, page, table = _names(tmp_path / "out")
    assert (page, table) == ("index.html", "metrics.csv") and 3 <= len(written) < 400
    assert len({(tmp_path / "out" / name).read_bytes() for name in written}) == 1
    assert _read(tmp_path / "out" / written[0]).num_residues == 214
    assert len(written) - len(_table(tmp_path / "out")) in (0, 1)  # interrupted between the structure and its row


def test_nobody_reads_the_output(tmp_path, model):
    process = _process("encode", OPEN, "--out", tmp_path, "--model", model)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 141 and err == ""
