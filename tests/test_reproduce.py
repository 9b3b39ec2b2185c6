"""pipelines/reproduce.py: its commands exist and their options are known; tables land where they are committed."""

import runpy
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from inprocess import run_pipeline

from ophio.cli import main as ophio
from ophio.config import CONFIG_DIR
from ophio.signatures import check

ROOT = Path(__file__).parents[1]
MODULE = runpy.run_path(str(ROOT / "pipelines" / "reproduce.py"))
TABLES = MODULE["TABLES"]


def run(*options: str) -> int:
    return run_pipeline(MODULE["main"], "reproduce", *options)


@pytest.mark.parametrize("table", TABLES)
def test_commands_are_known(table, capsys):
    corpora, commands, _ = TABLES[table]
    commands = [*commands, *(f"pipelines/prepare_data.py output=out {MODULE['CORPORA'][name]}" for name in corpora)]
    for command in commands:
        script, *options = shlex.split(command.format(archives="data", work="work", out="out"))
        if script == "-m":
            with pytest.raises(SystemExit) as end:
                ophio([*options[1:], "--help"])
            known = capsys.readouterr().out
            assert end.value.code == 0 and all(word in known for word in options if word.startswith("--"))
        elif options:
            with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
                check(compose(Path(script).stem, options), runpy.run_path(str(ROOT / script))["main"].__wrapped__)
        else:
            assert (ROOT / script).exists()


def test_committed_tables_are_those_that_are_made():
    made = {name for _, _, files in TABLES.values() for name in files.values()}
    assert {path.name for path in (ROOT / "docs" / "tables").glob("*.csv")} <= made


def test_unknown_table(tmp_path, capfd):
    assert run("table=nothing", f"archives={tmp_path}") == 2
    assert "table=nothing: not one of reconstruction" in capfd.readouterr().err


def test_a_failing_command_is_named_and_leaves_no_table(tmp_path, capfd):
    assert (
        run("table=generation", f"archives={tmp_path}", f"work={tmp_path / 'work'}", f"output={tmp_path / 'out'}") == 2
    )
    assert "prepare_data.py: failed" in capfd.readouterr().err and not (tmp_path / "out").exists()
