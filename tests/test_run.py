"""The chain of all stages on a handful of structures: once through, then only what has changed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import adk
import pytest

from ophio.errors import UserError
from ophio.io import write_structure
from ophio.stages import Stage, identity, run_stage

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "pipelines" / "run.py"
STAGES = ["prepare_data", "train_autoencoder", "encode_latents", "train_diffusion", "sample", "evaluate"]
FASTER = [  # than the experiment is: it takes a minute or two
    "prepare_data.num_workers=1", "train_autoencoder.total_steps=4", "train_autoencoder.trainer.limit_val_batches=0",
    "train_diffusion.total_steps=4", "train_diffusion.trainer.limit_val_batches=0", "sample.num=2", "sample.steps=2",
    "evaluate.fast=true", "evaluate.networks=1", "evaluate.num_controls=1",
]  # fmt: skip


# one stage


@pytest.fixture
def stage(tmp_path) -> Stage:
    (tmp_path / "input.txt").write_text("one")
    options = {"steps": 3, "model": {"width": 4, "device": "cpu"}}
    return Stage("train", options, {"text": tmp_path / "input.txt"}, tmp_path / "out", "last.txt")


def perform(stage: Stage, content: str | None = "made") -> tuple[bool, list[str]]:
    """Whether the stage ended, and what was said; "ran" is in there where it ran."""
    said: list[str] = []

    def run() -> None:
        said.append("ran")
        stage.output.mkdir(exist_ok=True)
        if content is not None:
            (stage.output / stage.last).write_text(content)

    return run_stage(stage, stage.output.parent / "stamps", run, said.append), said


def changed(stage: Stage, **options) -> Stage:
    return Stage(stage.name, {**stage.options, **options}, stage.inputs, stage.output, stage.last)


def test_a_stage_runs_once(stage):
    assert perform(stage) == (True, ["train: starts", "ran"])
    assert perform(stage) == (True, ["train: done, nothing has changed"])
    other_device = changed(stage, model={"width": 4, "device": "cuda"}, num_workers=7)
    assert perform(other_device) == (True, ["train: done, nothing has changed"])


def test_a_changed_option_runs_it_anew_and_keeps_what_was_there(stage):
    perform(stage)
    ended, said = perform(changed(stage, model={"width": 5}), "wider")
    assert (
        ended and "model.width is 5, was 4; what was there is now" in said[0] and said[1:] == ["train: starts", "ran"]
    )
    assert (stage.output.with_name("out.1") / "last.txt").read_text() == "made"
    assert (stage.output / "last.txt").read_text() == "wider"
    assert perform(stage)[1][-1] == "ran" and stage.output.with_name("out.2").exists()


def test_another_input_runs_it_anew(stage):
    perform(stage)
    stage.inputs["text"].write_text("two")
    assert "its text is another" in perform(stage)[1][0]


@pytest.mark.parametrize("lost", ["folder", "file", "changed"])
def test_a_result_that_is_gone_is_made_again(stage, lost):
    perform(stage)
    if lost == "changed":
        (stage.output / "last.txt").write_text("by someone else")
    else:
        (stage.output / "last.txt").unlink()
        if lost == "folder":
            stage.output.rmdir()
    assert perform(stage) == (True, ["train: goes on", "ran"])


def test_an_interrupted_stage_goes_on_in_its_folder(stage):
    assert perform(stage, content=None) == (False, ["train: starts", "ran"])
    assert perform(stage) == (True, ["train: goes on", "ran"])
    assert not stage.output.with_name("out.1").exists()


def test_a_folder_of_unknown_origin_is_moved_aside(stage):
    stage.output.mkdir()
    (stage.output / "last.txt").write_text("precious")
    assert "not made by this chain" in perform(stage)[1][0]
    assert (stage.output.with_name("out.1") / "last.txt").read_text() == "precious"


def test_identity_of_a_folder_changes_with_its_files(tmp_path):
    (tmp_path / "a.pdb").write_text("one")
    before = identity(tmp_path)
    assert identity(tmp_path) == before
    (tmp_path / "b.pdb").write_text("two")
    assert identity(tmp_path) != before
    with pytest.raises(UserError, match="nowhere: missing"):
        identity(tmp_path / "nowhere")


def test_a_damaged_stamp_is_named(stage):
    perform(stage)
    (stage.output.parent / "stamps" / "train.json").write_text("{")
    with pytest.raises(UserError, match="train.json: damaged"):
        perform(stage)


# the chain


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """24 pieces of adenylate kinase, of 40 to 51 residues, in `input`."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / "input").mkdir()
    for k in range(24):
        protein = adk.read((adk.OPEN, adk.CLOSED)[k % 2])[1]
        write_structure(protein.crop(6 * k, 6 * k + 40 + k % 12), folder / "input" / f"piece{k:02d}.pdb")
    return folder


def chain(folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), "experiment=mini_smoke", "input=input", "output=run", *FASTER, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def ran(done: subprocess.CompletedProcess) -> list[str]:
    assert done.returncode == 0, done.stderr
    return re.findall(r"^(\w+): (?:starts|goes on)$", done.stdout, re.MULTILINE)


def test_once_through_all_stages_then_nothing_then_what_changed(folder):
    misspelt = chain(folder, "train_diffusion.total_stepss=3")
    assert misspelt.returncode == 2 and not (folder / "run").exists()  # before any work
    assert misspelt.stderr.startswith("run: train_diffusion: ") and "total_stepss" in misspelt.stderr

    assert ran(chain(folder)) == STAGES
    report = json.loads((folder / "run" / "report" / "report.json").read_text())
    assert [row["group"] for row in report["groups"]] == ["samples", "natives", "mirrors", "noised"]
    assert report["groups"][0]["structures"] == 2 and report["reference"] == "corpus"

    second = chain(folder)
    assert ran(second) == [] and second.stdout.count("done, nothing has changed") == 6

    third = chain(folder, "sample.steps=3")
    assert ran(third) == ["sample", "evaluate"] and "steps is 3, was 2" in third.stdout
    assert (folder / "run" / "samples.1").is_dir()
