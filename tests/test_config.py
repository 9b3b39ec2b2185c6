import inspect
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from inprocess import run_pipeline
from omegaconf import DictConfig, OmegaConf

from ophio.config import CONFIG_DIR
from ophio.errors import UserError
from ophio.sampling import SamplerSettings
from ophio.signatures import as_annotated, check

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
    with pytest.raises(UserError, match="model.inner.width: required, but not given"):
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


def test_who_refers_to_an_ill_typed_value_is_not_blamed():
    broken = OmegaConf.create(config(width="${steps}") | {"steps": "many"})
    with pytest.raises(UserError, match="^steps='many': expected int"):
        check(broken, run)


def test_dictionaries_and_lists_are_told_apart():
    def takes(some: DictConfig, names: list[str], either: str | list[str] = "a") -> None: ...

    check(OmegaConf.create({"some": {"a": 1}, "names": ["a"], "either": ["b"]}), takes)
    for key, value in (("some", [1]), ("some", 1), ("names", {"a": 1}), ("names", [1]), ("either", {"a": 1})):
        broken = {"some": {}, "names": []} | {key: value}
        with pytest.raises(UserError, match=f"^part.{key}=.*: expected"):
            check(OmegaConf.create(broken), takes, "part.")


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
    command = [sys.executable, str(PIPELINES / "prepare_data.py"), "num_workers=five", "input=nowhere", "output=out"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(PIPELINES.parent)}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "prepare_data: num_workers='five': expected int | None\n"
    assert list(tmp_path.iterdir()) == []


# Every pipeline

SCRIPTS = sorted(path.stem for path in PIPELINES.glob("*.py"))


@cache
def main_of(script: str) -> Callable[[], None]:
    return runpy.run_path(str(PIPELINES / f"{script}.py"), run_name=script)["main"]


@cache
def composed(script: str) -> DictConfig:
    """Its configuration, with something in place of what must be given."""
    (path,) = (path for path in CONFIG_DIR.rglob(f"{script}.yaml") if "hydra:" in path.read_text())
    with initialize_config_dir(str(path.parent), version_base="1.3"):
        found = compose(script)
    for key in OmegaConf.missing_keys(found):
        OmegaConf.update(found, key, "nowhere")
    return found


def required(script: str) -> list[str]:
    return [f"{key}=nowhere" for key, value in flat(composed(script)) if value == "nowhere"]


def flat(config: DictConfig, path: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in config.items():
        found += flat(value, f"{path}{key}.") if isinstance(value, DictConfig) else [(f"{path}{key}", value)]
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_of_a_pipeline_has_a_type_that_is_checked(script):
    run = main_of(script).__wrapped__
    for key, parameter in inspect.signature(run).parameters.items():
        config = deepcopy(composed(script))
        config[key] = 7 if "DictConfig" in str(parameter.annotation) else {"a": 1}
        with pytest.raises(UserError, match=f"^{key}=.*: expected"):
            check(config, run)


@pytest.mark.parametrize("script", SCRIPTS)
def test_mistakes_in_the_options_of_a_pipeline_cost_a_line_and_no_work(script, monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = required(script)
    known = inspect.signature(main_of(script).__wrapped__).parameters
    ill_typed = next(key for key, value in known.items() if "DictConfig" not in str(value.annotation))
    mistakes = {
        "ouptut=3": f"ouptut: no such option; there are {', '.join(known)}",
        "+ouptut=3": f"ouptut: no such option; there are {', '.join(known)}",
        f"{ill_typed}={{a: 1}}": f"{ill_typed}=",
        "": f"{given[0].split('=')[0]}: required, but not given (see --help)",
    }
    for mistake, message in mistakes.items():
        options = [*given, mistake] if mistake else given[1:]
        assert run_pipeline(main_of(script), script, *options) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith(f"{script}: ") and message in err, err
    assert list(tmp_path.iterdir()) == []


INSIDE = [
    ("prepare_data", "filters.min_lenght=3", "filters.min_lenght"),
    ("prepare_data", "filters.min_length=few", "filters.min_length"),
    ("prepare_data", "+folder.splt={}", "splt"),
    ("prepare_data", "filters.breaks=mend", "breaks"),
    ("prepare_data", "folder.chains=some", "chains"),
    ("train_autoencoder", "loss=3", "loss=3: expected the name of a configuration; there are reconstruction"),
    ("train_autoencoder", "total_steps=many", "total_steps='many': expected int"),
    ("train_diffusion", "model.denoiser.wdth=3", "model.denoiser.wdth: no such option"),
    ("train_diffusion", "model.process.prediction=3", "model.process.prediction=3: expected str"),
    ("train_diffusion", "data={a: 1}", "data={a: 1}: expected the name of a configuration; there are latents"),
    ("run", "++sample.nmu=3", "sample: nmu: no such option"),
    ("run", "++sample.num=few", "sample: num='few': expected int"),
    ("run", "++train_autoencoder.model.kernel=five", "train_autoencoder: model.kernel='five': expected int"),
    ("run", "stages=[sampel]", "stages: no sampel; there are prepare_data, "),
    ("release", "sampling={stepps: 10}", "sampling.stepps: no such option; there are sampler, steps, "),
    ("release", "sampling={steps: few}", "sampling.steps='few': expected int"),
    ("interpolate", "models=[1]", "models=[1]: expected list[str]"),
    ("interpolate", "methods=[strait]", "methods: no strait; there are linear"),
    ("interpolate", "core_rmsd=[1.5]", "core_rmsd=[1.5]: give the lowest and the highest"),
    ("reproduce", "table=speeed", "table=speeed: not one of reconstruction"),
    ("sample", "sampler=ddmp", "ddmp"),
    ("sample", "length=long", "long"),
    ("evaluate", "lengths=some", "some"),
]


@pytest.mark.parametrize(("script", "mistake", "message"), INSIDE)
def test_mistakes_inside_options_are_named(script, mistake, message, monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = [option for option in required(script) if option.split("=")[0] != mistake.split("=")[0]]
    assert run_pipeline(main_of(script), script, *given, mistake) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(f"{script}: ") and message in err, err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_tells_what_a_pipeline_does_and_every_option(script, capfd):
    assert run_pipeline(main_of(script), script, "--help") == 0
    told = capfd.readouterr().out
    documented = (PIPELINES / f"{script}.py").read_text().split('"""')[1]
    assert told.startswith(documented.splitlines()[0])
    for key in composed(script):
        assert f"\n{key}:" in told or f"Given as {key}.name=value:" in told, key
    assert "hydra" not in told and "defaults:" not in told
    if script.startswith("train"):
        assert "experiment=NAME" in told and "\n  mini_smoke " in told


def test_whole_numbers_become_floats_where_the_signature_has_floats():
    given = {"steps": 30, "noise_scale": 1, "calibration": [[0, 1], [0.1, 1]], "typical": True}
    made = as_annotated(given, SamplerSettings)
    assert made == given and type(made["steps"]) is int and made["typical"] is True
    assert type(made["noise_scale"]) is float
    assert all(type(value) is float for row in made["calibration"] for value in row)
