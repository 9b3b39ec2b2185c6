"""kill -9 at any moment, a full disk, a folder that cannot be written: nothing is corrupted, and the same command ends as
if nothing had happened.

Commands run in forks of this process, which spares the imports. A fork kills itself when it opens, renames or removes a
file for the n-th time: between any two of these there is nothing that a later run could notice.
"""

import contextlib
import errno
import os
import re
import resource
import runpy
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import adk
import numpy as np
import pytest
import torch
from inprocess import run_pipeline

from ophio import cli
from ophio.autoencoder import Autoencoder
from ophio.evaluation import evaluate
from ophio.io import write_structure
from ophio.pretrained import save

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks"),
]
AUTOENCODER = {"channels": [8, 8], "strides": [2], "latent_channels": 4, "latent_lmax": 1}
DENOISER = ["latent_channels=4", "channels=8", "depth=1", "heads=2", "pair_channels=4"]
DIFFUSION = [
    "experiment=mini_smoke", *(f"++model.denoiser.{option}" for option in DENOISER), "total_steps=4", "checkpoint_every=1",
    "trainer.limit_val_batches=0", "trainer.accelerator=cpu", "sample_lengths=[12]",
]  # fmt: skip
TRAINING = [
    "experiment=mini_smoke", "model.channels=[8,8]", "model.strides=[2]", "model.latent_channels=4", "loss.num_atoms=16",
    "data.max_residues=128", "data.bucket_edges=[32]", "total_steps=4", "checkpoint_every=1", "trainer.limit_val_batches=0",
    "trainer.accelerator=cpu",
]  # fmt: skip
STAGES = {
    name: runpy.run_path(str(ROOT / "pipelines" / f"{name}.py"))["main"]
    for name in ("prepare_data", "train_autoencoder", "encode_latents", "train_diffusion")
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """What stages read: `pieces`, `corpus`, `autoencoder`, `latents`, `diffusion`, `structures`."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("pieces", "structures"):
        (folder / name).mkdir()
    protein, rng = adk.read(adk.OPEN)[1], np.random.default_rng(0)
    for k in range(16):
        start = int(rng.integers(180))
        write_structure(protein.crop(start, start + 24 + k % 6), folder / "pieces" / f"{k:02d}.pdb")
    for k in range(3):
        shutil.copy(folder / "pieces" / f"{k:02d}.pdb", folder / "structures")
    torch.manual_seed(0)
    save(Autoencoder(**AUTOENCODER), AUTOENCODER, folder / "autoencoder", {"name": "tiny"})
    for stage, output in (("prepare_data", "corpus"), ("encode_latents", "latents"), ("train_diffusion", "diffusion")):
        assert stage_of(stage, folder)(folder / output) == 0, stage
    return folder


def stage_of(name: str, made: Path) -> Callable[[Path], int]:
    """A command that writes a folder, and returns its exit status."""
    if name in ("sample", "evaluate", "reconstruct"):
        arguments = {
            "sample": [
                "--model",
                made / "diffusion",
                "--num",
                "4",
                "--length",
                "12-20",
                "--steps",
                "2",
                "--batch-size",
                "2",
                "--workers",
                "1",
            ],
            "evaluate": [made / "structures", "--fast", "--num-controls", "1", "--lengths", "20-40"],
            "reconstruct": [made / "structures", "--model", made / "autoencoder"],
        }[name]
        return lambda output: cli.main([name, *map(str, arguments), "--out", str(output)])
    options = {
        "prepare_data": [
            f"input={made / 'pieces'}", "num_workers=1", "filters.min_length=1", "filters.min_completeness=0.0",
            "filters.max_bond_deviation=null", "folder.split={train: 0.7, val: 0.3, test: 0.0}",
        ],
        "train_autoencoder": [*TRAINING, f"data.path={made / 'corpus'}"],
        "encode_latents": [
            f"autoencoder={made / 'autoencoder'}", f"corpus={made / 'corpus'}", "min_length=1", "splits=[train]",
        ],
        "train_diffusion": [*DIFFUSION, f"autoencoder={made / 'autoencoder'}", f"data.path={made / 'latents'}"],
    }[name]  # fmt: skip
    return lambda output: run_pipeline(STAGES[name], name, *options, f"output={output}")


def forked(work: Callable[[], int], errors: Path) -> int:
    """The exit status of `work` in a fork, whose standard error becomes a file; minus the signal that ended it."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 99
        with contextlib.suppress(BaseException):
            stream = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(stream, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stderr, sys.stdout = os.fdopen(2, "w", closefd=False), os.fdopen(1, "w", closefd=False)
            try:
                status = work()
            except BaseException:
                import traceback

                traceback.print_exc()
            sys.stderr.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_writes(output: Path, act: Callable[[int], None]) -> None:
    """Calls `act` with a count, before any file below `output` is opened for writing, renamed or removed."""
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        writes = event in ("os.rename", "os.remove", "os.mkdir") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if (
            writes
            and isinstance(arguments[0], (str, bytes, os.PathLike))
            and os.fsdecode(arguments[0]).startswith(str(output))
        ):
            count += 1
            act(count)

    sys.addaudithook(hook)


def killed_at(number: int, run: Callable[[Path], int], output: Path, errors: Path) -> bool:
    """Whether the command lived to its end. In a fork, it kills itself before its n-th write."""

    def act(count: int) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> int:
        at_writes(output, act)
        return run(output)

    status = forked(work, errors)
    assert status in (0, -signal.SIGKILL), errors.read_text()
    return status == 0


def results(folder: Path) -> dict[str, bytes]:
    """What the folder holds for others to use, without what tells of time."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    kept = {}
    for name, data in found.items():
        if (
            name.endswith((".ckpt", ".part", "plan.json", ".html", ".md"))
            or name.startswith("logs/")
            or "seconds" in name
        ):
            continue
        if name.endswith((".json", ".jsonl")):
            data = re.sub(rb'"(seconds|train_seconds|created)": [^,}]*', b"", data).replace(
                str(folder).encode(), b"OUT"
            )
        kept[name] = data
    return kept


@pytest.fixture
def quick_scores(monkeypatch):
    """Stands for sequence design and folding, which cost time."""
    scores = {"energy": -1.0, "sequences": ["A"], "designed": []}
    monkeypatch.setattr(
        evaluate, "self_consistency", lambda protein, *others: dict(scores, length_seen=len(protein.sequence))
    )
    monkeypatch.setattr(evaluate, "_load", lambda protocol, device: (None, None))


def filled(made: Path) -> Callable[[Path], int]:
    """The records of an evaluation without its report, of which other tests tell."""

    def run(output: Path) -> int:
        protocol = evaluate.Protocol(fast=True)
        evaluate.prepare(made / "structures", output, protocol, num_controls=1, lengths=(20, 40)).fill()
        return 0

    return run


KILLS = {
    "prepare_data": 3,
    "train_autoencoder": 2,
    "encode_latents": 3,
    "train_diffusion": 2,
    "sample": 4,
    "evaluate": 4,
}


@pytest.mark.parametrize("stage", KILLS)
def test_a_killed_command_run_again_ends_the_same(stage, made, tmp_path, quick_scores):
    run = filled(made) if stage == "evaluate" else stage_of(stage, made)
    writes: list[int] = []
    counter = tmp_path / "count"

    def counted() -> int:
        at_writes(tmp_path / "whole", lambda count: counter.write_text(str(count)))
        return run(tmp_path / "whole")

    assert forked(counted, tmp_path / "err") == 0, (tmp_path / "err").read_text()
    number = int(counter.read_text())
    whole = results(tmp_path / "whole")
    assert number >= 3 and whole
    for at in sorted({*np.linspace(2, number, KILLS[stage]).round().astype(int).tolist()}):
        output = tmp_path / f"killed{at}"
        if not killed_at(at, run, output, tmp_path / "err"):
            writes.append(at)
        assert forked(lambda: run(output), tmp_path / "err") == 0, (tmp_path / "err").read_text()
        again = results(output)
        assert again.keys() == whole.keys(), (at, again.keys() ^ whole.keys())
        odd = [name for name in whole if again[name] != whole[name]]
        assert not odd, (at, odd, [again[n][:300] for n in odd], [whole[n][:300] for n in odd])
    assert len(writes) >= 2  # it was killed indeed


@pytest.mark.parametrize(
    "stage", ["prepare_data", "train_autoencoder", "encode_latents", "train_diffusion", "sample", "reconstruct"]
)
def test_a_full_disk_is_one_line_and_then_the_command_goes_on(stage, made, tmp_path):
    run, output = stage_of(stage, made), tmp_path / "out"

    def full() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))  # bytes in any file
        return run(output)

    assert forked(full, tmp_path / "err") == 2, (tmp_path / "err").read_text()
    said = [
        line
        for line in (tmp_path / "err").read_text().splitlines()
        if "error" in line.lower() or "written" in line or "large" in line
    ]
    assert said and "Traceback" not in (tmp_path / "err").read_text()
    assert forked(lambda: run(output), tmp_path / "err") == 0, (tmp_path / "err").read_text()
    assert forked(lambda: run(tmp_path / "whole"), tmp_path / "err") == 0
    assert results(output) == results(tmp_path / "whole")


@pytest.mark.parametrize(
    "stage", ["prepare_data", "train_autoencoder", "encode_latents", "train_diffusion", "sample", "reconstruct"]
)
def test_a_folder_that_cannot_be_written_is_one_line(stage, made, tmp_path):
    run, output = stage_of(stage, made), tmp_path / "out"

    def refuse(count: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(output))

    def work() -> int:
        at_writes(output, refuse)
        return run(output)

    assert forked(work, tmp_path / "err") == 2, (tmp_path / "err").read_text()
    lines = (tmp_path / "err").read_text().splitlines()
    assert "Read-only file system" in lines[-1] and str(output) in lines[-1] and "Traceback" not in "".join(lines)
    assert not output.exists()
