import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from ophio.config import CONFIG_DIR, check
from ophio.errors import UserError

PIPELINES = Path(__file__).parents[1] / "pipelines"
TRAIN = PIPELINES / "train_autoencoder.py"
EXPERIMENTS = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))


@dataclass
class Inner:
    width: int
    rate: float = 0.1
    name: str | None = None
    sizes: Sequence[int] = ()
    weights: Mapping[str, float] | None = None
    path: str | Path = "here"
    deep: bool = False
    step: float | torch.Tensor = 0.5
    anything: Any = None


class Outer:
    def __init__(self, inner: Inner, *, inners: list[Inner] | None = None):
        pass


def run(model: object, steps: int, output: str, limit: int | None = None) -> None:
    """Stands for a pipeline."""


def config(**changes) -> dict:
    """A valid configuration of `run`, two levels deep, with some keys of the inner level changed."""
    inner = {"_target_": f"{__name__}.Inner", "width": 3} | changes
    return {"model": {"_target_": f"{__name__}.Outer", "inner": inner}, "steps": 10, "output": "x"}


def test_what_fits_passes():
    check(OmegaConf.create(config()), run)
    full = dict(rate=1, name="a", sizes=[1, 2], weights={"a": 1, "b": 2.5}, path="p", deep=True, step=1.5, anything=7)
    check(OmegaConf.create(config(**full)), run)
    check(OmegaConf.create(config(name=None) | {"limit": None}), run)
    check(OmegaConf.create(config() | {"output": "${model.inner.path}", "model": config(path="q")["model"]}), run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widht": 3}, "model.inner.widht: no such option; there are width, rate, name, sizes, weights, path, deep"),
        ({"width": "five"}, "model.inner.width='five': expected int"),
        ({"width": 2.5}, "model.inner.width=2.5: expected int"),
        ({"width": True}, "model.inner.width=True: expected int"),
        ({"width": None}, "model.inner.width=None: expected int"),
        ({"rate": "fast"}, "model.inner.rate='fast': expected float"),
        ({"name": 7}, "model.inner.name=7: expected str | None"),
        ({"sizes": 4}, r"model.inner.sizes=4: expected Sequence\[int\]"),
        ({"sizes": [1, "two"]}, r"model.inner.sizes=\[1, 'two'\]: expected Sequence\[int\]"),
        ({"weights": {"a": "b"}}, "model.inner.weights=.*: expected Mapping"),
        ({"deep": 1}, "model.inner.deep=1: expected bool"),
        ({"step": "fast"}, r"model.inner.step='fast': expected float | torch.Tensor"),
        ({"path": 3}, "model.inner.path=3: expected str"),
    ],
)
def test_a_nested_key_that_is_misspelt_or_ill_typed_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        check(OmegaConf.create(config(**changes)), run)


def test_a_missing_value_is_named():
    broken = config()
    del broken["model"]["inner"]["width"]
    with pytest.raises(UserError, match="model.inner.width: required, but not given"):
        check(OmegaConf.create(broken), run)
    del broken["steps"]
    broken["model"]["inner"]["width"] = 3
    with pytest.raises(UserError, match="^steps: required"):
        check(OmegaConf.create(broken), run)
    with pytest.raises((UserError, MissingMandatoryValue), match="width"):
        check(OmegaConf.create(config(width="???")), run)


def test_keys_of_the_pipeline_itself_are_checked():
    with pytest.raises(UserError, match="stepps: no such option; there are model, steps, output, limit"):
        check(OmegaConf.create(config() | {"stepps": 3}), run)
    with pytest.raises(UserError, match="steps='many': expected int"):
        check(OmegaConf.create(config() | {"steps": "many"}), run)


def test_objects_inside_lists_are_checked():
    broken = config()
    broken["model"]["inners"] = [{"_target_": f"{__name__}.Inner", "width": 1, "wide": 2}]
    with pytest.raises(UserError, match="model.inners.0.wide: no such option"):
        check(OmegaConf.create(broken), run)


def test_unknown_targets_are_named():
    broken = config()
    broken["model"]["inner"]["_target_"] = "ophio.nowhere.Inner"
    with pytest.raises(UserError, match="model.inner._target_=ophio.nowhere.Inner: no such class or function"):
        check(OmegaConf.create(broken), run)


def test_partial_objects_may_lack_arguments():
    partial = config(_partial_=True)
    del partial["model"]["inner"]["width"]
    check(OmegaConf.create(partial), run)
    partial["model"]["inner"]["widht"] = 3
    with pytest.raises(UserError, match="model.inner.widht: no such option"):
        check(OmegaConf.create(partial), run)


# The configurations that ophio brings, and its commands


@pytest.fixture(scope="module")
def train():
    """The command, as `python pipelines/train_autoencoder.py` runs it, but in this process."""
    return runpy.run_path(str(TRAIN), run_name="train_autoencoder")["main"]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_fits_the_signatures(train, experiment):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        composed = compose("train_autoencoder", [f"experiment={experiment}", "data.path=corpus"])
    check(composed, train.__wrapped__)
    assert composed.name == experiment
    assert composed.model is None or len(composed.model.channels) == len(composed.model.strides) + 1


CORPUS = "data.path=nowhere"
MISTAKES = [
    (["model.chanels=[1]", CORPUS], "model.chanels"),
    (["model.kernel=five", CORPUS], "model.kernel='five': expected int"),
    (["+model.foo=1", CORPUS], "model.foo: no such option"),
    (["+foo=1", CORPUS], "foo: no such option"),
    (["experiment=nonexistent", CORPUS], "experiment/nonexistent"),
    (["optimizer.lr=fast", CORPUS], "optimizer.lr='fast': expected"),
    (["total_steps=1.5", CORPUS], "=1.5: expected int"),
    (["model.strides=[2]", CORPUS], "1 strides need 2 channel widths, not 4"),
    (["~loss.weights.kl", CORPUS], "loss weights must name exactly"),
    ([CORPUS], "nowhere: no corpus here"),
    ([], "data.path"),
    (["model.kernel=", "=", CORPUS], "="),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES)
def test_mistakes_end_in_one_line_and_status_2(train, monkeypatch, capfd, tmp_path, overrides, message):
    monkeypatch.setattr(sys, "argv", [str(TRAIN), f"output={tmp_path / 'run'}", *overrides])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        train()
    out, err = capfd.readouterr()
    assert stopped.value.code == 2
    assert message in err
    lines = [line for line in err.splitlines() if "Trainer" not in line]
    assert len(lines) == 1, err
    assert lines[0].startswith("train_autoencoder: ")


def test_a_mistake_on_the_command_line_gives_status_2(tmp_path):
    command = [sys.executable, str(TRAIN), "model.kernel=five", "data.path=nowhere"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(PIPELINES.parent)}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "train_autoencoder: model.kernel='five': expected int\n"
    assert list(tmp_path.iterdir()) == []
