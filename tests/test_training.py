"""Training: interruptions of every kind, bad checkpoints and options, several devices, every experiment.

Runs of the real pipeline: some in processes of their own, to be killed; the others here, which spares the imports.
"""

import csv
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import adk
import lightning
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from inprocess import run_pipeline
from safetensors.torch import load_file

from ophio import pretrained
from ophio.config import CONFIG_DIR
from ophio.data import Filters, LengthBucketBatchSampler, Settings, prepare
from ophio.data.datamodule import CorpusDataModule
from ophio.errors import UserError
from ophio.io import write_structure
from ophio.lightning import checkpoint as checkpoints
from ophio.lightning.autoencoder import AutoencoderModule
from ophio.lightning.checkpoint import max_seconds
from ophio.protein import stack
from ophio.signatures import check

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "pipelines" / "train_autoencoder.py"
MAIN = runpy.run_path(str(SCRIPT))["main"]
EXPERIMENTS = sorted({path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml")} - {"finetune"})  # has no model
TINY = [
    "experiment=mini_smoke",
    "model.channels=[4,4]",
    "model.strides=[2]",
    "model.latent_channels=4",
    "model.latent_noise=0.1",
    "loss.num_atoms=32",
    "optimizer.lr=0.002",
    "data.max_residues=128",
    "data.bucket_edges=[32]",
    "trainer.accelerator=cpu",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=2",
]
pytestmark = pytest.mark.usefixtures("one_thread")  # as in the processes started here: sums of floats depend on it
LONG = ["total_steps=40", "checkpoint_every=5", "trainer.val_check_interval=7"]
SHORT = ["total_steps=9", "checkpoint_every=1", "trainer.val_check_interval=3"]  # an epoch has 4 batches


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """16 training and 4 validation chains of 20 to 31 residues, pieces of adenylate kinase."""
    folder = tmp_path_factory.mktemp("corpus")
    protein, rng = adk.read(adk.OPEN)[1], np.random.default_rng(0)
    lengths = rng.integers(20, 32, size=20)
    starts = rng.integers(180, size=20)
    pieces = [protein.crop(int(a), int(a + n)).center() for a, n in zip(starts, lengths, strict=True)]
    np.savez(
        folder / "pieces.npz",
        coords=np.concatenate([(piece.positions * 100).round().short().numpy() for piece in pieces]),
        mask=np.concatenate([piece.atom_mask.numpy() for piece in pieces]),
        aatype=np.concatenate([piece.residue_type.byte().numpy() for piece in pieces]),
        lengths=lengths.astype(np.int32),
        ids=np.array([f"piece{k}" for k in range(20)]),
        split=np.array(["train"] * 16 + ["val"] * 4),
        cluster30=np.arange(20, dtype=np.int32),
    )
    no_limits = Settings(Filters(min_length=1, min_completeness=0.0, max_bond_deviation=None))
    prepare([folder / "pieces.npz"], folder / "corpus", no_limits)
    return folder / "corpus"


def train(corpus: Path, output: Path, *options: str) -> int:
    """Runs the pipeline in this process; its exit status."""
    return run_here(*TINY, f"data.path={corpus}", f"output={output}", *options)


def run_here(*options: str) -> int:
    return run_pipeline(MAIN, SCRIPT.stem, *options)


def start(corpus: Path, output: Path, *options: str) -> subprocess.Popen:
    """Starts the same pipeline with the same options in a process of its own."""
    command = [sys.executable, str(SCRIPT), *TINY, f"data.path={corpus}", f"output={output}", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(process: subprocess.Popen, output: Path, newer_than: int = 0) -> None:
    file = output / "last.ckpt"
    deadline = time.monotonic() + 60
    while not file.exists() or file.stat().st_mtime_ns <= newer_than:
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.01)


def weights(output: Path) -> bytes:
    return (output / "model.safetensors").read_bytes()


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def logged(output: Path, column: str) -> dict[int, str]:
    """Step -> value of a column, over all starts of a run."""
    rows = [row for file in sorted(output.glob("logs/*/metrics.csv")) for row in csv.DictReader(file.open())]
    return {int(row["step"]): row[column] for row in rows if row.get(column)}


@pytest.fixture(scope="module")
def short_run(corpus, tmp_path_factory) -> Path:
    """A finished run that keeps the checkpoint of every step, as step-K.ckpt."""
    output = tmp_path_factory.mktemp("short") / "run"
    save = checkpoints.WholeFile.save_checkpoint

    def save_and_keep(self, checkpoint, path, storage_options=None):
        save(self, checkpoint, path)
        shutil.copy(path, path.with_name(f"step-{checkpoint['global_step']}.ckpt"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.WholeFile, "save_checkpoint", save_and_keep)
        assert train(corpus, output, *SHORT) == 0
    return output


def test_interrupted_run_ends_with_the_same_weights(corpus, tmp_path, capfd):
    """Ctrl-C, kill -9, then the end of the allowed time: four starts of one command, against one."""
    output, whole = tmp_path / "interrupted", tmp_path / "whole"
    process = start(corpus, output, *LONG)
    wait_for_checkpoint(process, output)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.count("\n") == 1 and "interrupted; step" in err, err
    assert all(line.startswith(("ophio ", "step ")) for line in out.splitlines()), out
    saved = (output / "last.ckpt").stat().st_mtime_ns
    process = start(corpus, output, *LONG)
    wait_for_checkpoint(process, output, newer_than=saved)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert train(corpus, output, *LONG, "trainer.max_time='00:00:00:00'") == 0
    assert "max_time: step" in capfd.readouterr().out
    assert not (output / "model.safetensors").exists(), "the run was over before it was interrupted"
    assert train(corpus, output, *LONG) == 0
    assert train(corpus, whole, *LONG) == 0
    assert weights(output) == weights(whole)
    assert len(list(output.glob("logs/version_*"))) == 4
    losses, expected = logged(output, "train/loss"), logged(whole, "train/loss")
    assert losses.items() <= expected.items() and len(losses) >= len(expected) - 1 > 10  # kill -9 may cost a line
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("step", [3, 4, 6, 8, 9])  # before a validation, end of an epoch, both, and the end of all
def test_resume_from_any_step(step, short_run, corpus, tmp_path):
    shutil.copy(short_run / f"step-{step}.ckpt", tmp_path / "last.ckpt")
    assert train(corpus, tmp_path, *SHORT) == 0
    assert weights(tmp_path) == weights(short_run)


def test_loader_processes_change_nothing(short_run, corpus, tmp_path):
    assert train(corpus, tmp_path, *SHORT, "data.num_workers=1") == 0
    assert weights(tmp_path) == weights(short_run)


def test_another_seed_gives_other_weights(short_run, corpus, tmp_path):
    assert train(corpus, tmp_path, *SHORT, "seed=1") == 0
    assert weights(tmp_path) != weights(short_run)


def test_checkpoint_keeps_current_and_averaged_weights_apart(short_run):
    saved = torch.load(short_run / "last.ckpt", weights_only=True)
    released = load_file(short_run / "model.safetensors")
    assert all(torch.equal(saved["state_dict"][f"model.{key}"], value) for key, value in released.items())
    assert not all(torch.equal(saved["current_model_state"][f"model.{key}"], value) for key, value in released.items())


def test_card_tells_how_the_model_was_made(short_run):
    card = json.loads((short_run / "model.json").read_text())
    assert card["steps"] == 9 and card["chains"] == {"min_length": 1, "max_length": 128, "crop_length": None}
    assert card["validation"]["ca_rmsd"] == pytest.approx(float(logged(short_run, "val/ca_rmsd")[9]), rel=1e-4)
    assert 0 < card["train_seconds"] < 60 and "threads: 1" in card["hardware"]
    assert card["versions"] == {"ophio": "0.1.0", "torch": torch.__version__}
    assert card["config"]["optimizer"]["lr"] == 2e-3 and card["config"]["trainer"]["max_steps"] == 9
    assert torch.load(short_run / "last.ckpt", weights_only=True)["config"] == card["config"]


def test_time_adds_up_over_starts(short_run, corpus, tmp_path):
    saved = torch.load(short_run / "step-4.ckpt", weights_only=True)
    torch.save(saved | {"train_seconds": 1000.0}, tmp_path / "last.ckpt")
    assert train(corpus, tmp_path, *SHORT) == 0
    assert 1000 < json.loads((tmp_path / "model.json").read_text())["train_seconds"] < 1060


def test_no_temporary_files_stay(short_run):
    assert not list(short_run.rglob("*.tmp"))


class Trap:
    def __reduce__(self):
        return os.mkdir, (os.environ["OPHIO_TRAP"],)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _trapped(path: Path) -> None:
    torch.save({"model_config": Trap()}, path)


def _only_weights(path: Path) -> None:
    torch.save({"state_dict": {}}, path)


def _renamed(path: Path) -> None:
    saved = torch.load(path, weights_only=True)
    saved["current_model_state"]["model.other"] = saved["current_model_state"].popitem()[1]
    torch.save(saved, path)


@pytest.mark.parametrize(
    ("spoil", "option", "says"),
    [
        (_truncated, None, "no usable checkpoint"),
        (_empty, None, "no usable checkpoint"),
        (_trapped, None, "no usable checkpoint"),
        (_only_weights, None, "no checkpoint of a training run"),
        (_renamed, None, "other names or shapes"),
        (None, "model.latent_channels=5", "model.latent_channels 4 there, 5 now"),
        (None, "optimizer.lr=0.1", "optimizer.lr 0.002 there, 0.1 now"),
    ],
)
def test_unusable_checkpoint(spoil, option, says, short_run, corpus, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("OPHIO_TRAP", str(tmp_path / "trap"))
    output = tmp_path / "run"
    output.mkdir()
    shutil.copy(short_run / "step-4.ckpt", output / "last.ckpt")
    if spoil is not None:
        spoil(output / "last.ckpt")
    before = content(tmp_path)
    assert train(corpus, output, *SHORT, *([option] if option else [])) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and str(output / "last.ckpt") in err and says in err, err
    assert content(tmp_path) == before and not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("model.chanels=[4,4]", "model.chanels"),
        ("+model.chanels=[4,4]", "model.chanels: no such option"),
        ("+loss.wieghts=1", "loss.wieghts: no such option"),
        ("experiment=mini_smok", "mini_smok"),
        ("model.channels=4", "model.channels=4: expected"),
        ("model.strides=[2,2]", "2 strides need 3 channel widths"),
        ("+loss.weights.bond=1", "bond"),
        ("model._target_=ophio.autoencoder.Encoder", "ophio.autoencoder.Encoder"),
        ("trainer.accelerator=warp", "warp"),
        ("trainer.max_time=5m", "DD:HH:MM:SS"),
        ("total_steps=0", "total_steps"),
        ("checkpoint_every=0", "checkpoint_every"),
        ("ema_decay=1.5", "ema_decay"),
        ("data.path=nowhere", "nowhere: no corpus here"),
        ("data.bucket_edges=[16]", "bucket_edges"),
        ("init=nowhere", "nowhere"),
    ],
)
def test_bad_option(option, says, corpus, tmp_path, capfd):
    assert train(corpus, tmp_path / "run", option) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and says in err, err
    assert not (tmp_path / "run").exists()


def test_output_that_is_a_file(corpus, tmp_path, capfd):
    (tmp_path / "run").write_text("mine")
    assert train(corpus, tmp_path / "run") == 2
    assert "output=" in capfd.readouterr().err and (tmp_path / "run").read_text() == "mine"


def test_checkpoint_that_cannot_be_written(short_run, corpus, tmp_path, capfd, monkeypatch):
    """As on a full disk: the earlier checkpoint stays."""
    shutil.copy(short_run / "step-4.ckpt", tmp_path / "last.ckpt")
    before = (tmp_path / "last.ckpt").read_bytes()

    def full(checkpoint, file):
        file.write(b"some of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert train(corpus, tmp_path, *SHORT) == 2
    assert "No space left" in capfd.readouterr().err
    assert (tmp_path / "last.ckpt").read_bytes() == before and not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("rate", [1e30, float("inf")])
def test_diverged_weights_are_not_saved(rate, corpus, tmp_path, capfd):
    assert train(corpus, tmp_path, "total_steps=6", "checkpoint_every=3", f"optimizer.lr={rate}", "warmup_steps=0") == 2
    assert "training has diverged" in capfd.readouterr().err
    assert not (tmp_path / "last.ckpt").exists() and not (tmp_path / "model.safetensors").exists()


def test_bar_on_a_terminal(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert train(corpus, tmp_path, *SHORT) == 0
    captured = capsys.readouterr()
    assert "9/9" in captured.err and "loss" in captured.err and "val/ca_rmsd" in captured.err
    assert "step 9/9" not in captured.out


def test_fine_tuning_starts_from_the_given_weights(short_run, corpus, tmp_path, monkeypatch):
    """Without learning, what comes out is what went in: from a folder, and from a released name."""
    still = ["total_steps=1", "optimizer.lr=0.0", "seed=5"]
    assert train(corpus, tmp_path / "a", *still, f"init={short_run}") == 0
    released = tmp_path / "weights"
    released.mkdir()
    for suffix in (".json", ".safetensors"):
        shutil.copy(short_run / f"model{suffix}", released / f"tiny{suffix}")
    monkeypatch.setattr(pretrained, "RELEASED", released)
    assert train(corpus, tmp_path / "b", *still, "init=tiny") == 0
    assert weights(tmp_path / "a") == weights(tmp_path / "b") == weights(short_run)


def test_fine_tuning_of_another_architecture(short_run, corpus, tmp_path, capfd):
    assert train(corpus, tmp_path / "run", f"init={short_run}", "model.latent_channels=5") == 2
    assert "weights of another architecture" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_fine_tuning_on_a_folder_of_structures(short_run, tmp_path, capfd):
    """`experiment=finetune` makes the corpus, takes the architecture from `init`, and does without validation chains."""
    (tmp_path / "pdbs").mkdir()
    write_structure(adk.read(adk.OPEN)[1].crop(0, 40), tmp_path / "pdbs" / "open.pdb")
    few = [
        "total_steps=2",
        "warmup_steps=0",
        "data.max_residues=64",
        "data.bucket_edges=[64]",
        "trainer.accelerator=cpu",
    ]
    few += [f"data.input={tmp_path / 'pdbs'}", f"output={tmp_path / 'run'}"]
    assert run_here("experiment=finetune", f"init={short_run}", *few) == 0
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    assert card["arguments"] == json.loads((short_run / "model.json").read_text())["arguments"]
    assert card["steps"] == 2 and weights(tmp_path / "run") != weights(short_run)
    assert "no chains for validation" in capfd.readouterr().out
    assert run_here("experiment=finetune", "init=null", *few) == 2
    assert "name the model to go on with" in capfd.readouterr().err


def test_two_processes_step_as_one_with_both_batches(corpus, tmp_path):
    """One step of plain gradient descent by two processes, against one on the two batches joined."""
    options = ["optimizer._target_=torch.optim.SGD", "optimizer.weight_decay=0"]
    options += ["optimizer.lr=0.01", "warmup_steps=0", "total_steps=1", "trainer.gradient_clip_val=null"]
    options += ["model.latent_noise=0.0", "loss.num_atoms=448"]  # nothing random: all 32 x 14 atoms
    process = start(corpus, tmp_path, *options, "trainer.devices=2", "trainer.strategy=ddp")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "2 x" in out and out.count("model.safetensors") == 1 and len(list(tmp_path.glob("logs/*"))) == 1

    batches = [_first_batch(corpus, rank) for rank in (0, 1)]
    assert not set(batches[0].positions[:, 0, 0, 0].tolist()) & set(batches[1].positions[:, 0, 0, 0].tolist())
    both = stack([protein.map(lambda t, k=k: t[k]) for protein in batches for k in range(4)])
    found = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "model.json").read_text())["config"]
    moved = {name: _descend(config, batch) for name, batch in {"both": both, "first": batches[0]}.items()}
    start_point = _descend(config, None)
    for key, value in found.items():
        torch.testing.assert_close(value, moved["both"][key], rtol=1e-4, atol=1e-6)
    distance = {name: sum((found[key] - end[key]).norm() ** 2 for key in found) ** 0.5 for name, end in moved.items()}
    step = sum((found[key] - start_point[key]).norm() ** 2 for key in found) ** 0.5
    assert distance["both"] < 1e-3 * step < distance["first"]


def _first_batch(corpus: Path, rank: int):
    data = CorpusDataModule(corpus, max_residues=128, bucket_edges=[32])
    dataset, clusters = data.train_dataloader().dataset, data.corpus("train").clusters
    sampler = LengthBucketBatchSampler(dataset.lengths, [32], 128, clusters, rank=rank, world_size=2)
    return dataset[next(iter(sampler))]


def _descend(config: dict, batch) -> dict[str, torch.Tensor]:
    """Weights after one step of gradient descent from those that the seed gives."""
    lightning.seed_everything(config["seed"], verbose=False)
    model = instantiate(config["model"])
    if batch is not None:
        decoded, kl = model(batch)
        instantiate(config["loss"])(decoded, kl, batch)[0].backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= config["optimizer"]["lr"] * parameter.grad
    return {key: value.detach() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_learns(experiment):
    """Composes, passes the check, and its model, narrowed, fits one batch better after ten steps."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("train_autoencoder", [f"experiment={experiment}", "data.path=corpus"])
    check(config, MAIN.__wrapped__)
    torch.manual_seed(0)
    channels = [8] * len(config.model.channels)
    latent_channels = min(config.model.latent_channels, 8)
    model = instantiate(config.model, channels=channels, latent_channels=latent_channels)
    module = AutoencoderModule(model, instantiate(config.loss), instantiate(config.optimizer), warmup_steps=1)
    length = config.data.crop_length or 48
    batch = stack([adk.read(name)[1].crop(0, length).center() for name in (adk.OPEN, adk.CLOSED)])
    optimizer = module.configure_optimizers()["optimizer"]
    module.log = module.log_dict = lambda *_, **__: None
    losses = []
    for step in range(10):
        loss = module.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.95 * losses[0]


def test_durations():
    assert max_seconds("01:02:03:04") == 93784 and max_seconds(None) == float("inf")
    with pytest.raises(UserError, match="max_time"):
        max_seconds("10:00")
