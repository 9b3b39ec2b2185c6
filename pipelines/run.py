"""Structures -> corpus -> autoencoder -> latents -> diffusion model -> samples -> report, from one configuration.

    python pipelines/run.py experiment=mini_smoke input=my_structures output=runs/mine
    python pipelines/run.py experiment=mini_smoke input=my_structures output=runs/mine train_diffusion.total_steps=100

Reads `input`; writes the folder `output`, a folder for each stage in it. Every stage is one of the other pipelines, in
a process of its own, with the options under its name. Run again, a stage is skipped unless its options or what it reads
have changed; an interrupted one goes on. What other options made is kept in a folder beside. Options:
configs/chain/run.yaml.
"""

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ophio.config import CONFIG_DIR, explained, pipeline
from ophio.errors import UserError
from ophio.signatures import check, plain
from ophio.stages import Stage, run_stage

HERE = Path(__file__).parent


class Link(NamedTuple):
    """How a stage hangs on others."""

    folder: str  # that it writes, in the folder of the run
    last: str  # the file in there that it writes last
    output: str  # its option for that folder
    reads: dict[str, str]  # its options for what it reads: stages that make it, or "input"


LINKS = {
    "prepare_data": Link("corpus", "corpus.json", "output", {"input": "input"}),
    "train_autoencoder": Link("autoencoder", "model.safetensors", "output", {"data.path": "prepare_data"}),
    "encode_latents": Link(
        "latents", "latents.json", "output", {"autoencoder": "train_autoencoder", "corpus": "prepare_data"}
    ),
    "train_diffusion": Link(
        "diffusion", "model.safetensors", "output", {"autoencoder": "train_autoencoder", "data.path": "encode_latents"}
    ),
    "sample": Link("samples", "samples.jsonl", "output", {"weights": "train_diffusion"}),
    "evaluate": Link(
        "report",
        "report.json",
        "output",
        {"samples": "sample", "controls": "prepare_data", "reference": "prepare_data"},
    ),
}
CONFIGS = {"train_diffusion": "diffusion/train_diffusion"}  # the others are named as their stages


@pipeline("chain/run")
def main(
    name: str,
    input: str,
    output: str,
    stages: list[str],
    prepare_data: DictConfig,
    train_autoencoder: DictConfig,
    encode_latents: DictConfig,
    train_diffusion: DictConfig,
    sample: DictConfig,
    evaluate: DictConfig,
) -> None:
    chosen = {stage: plain(options) for stage, options in locals().items() if stage in LINKS}
    unknown = [stage for stage in stages if stage not in LINKS]
    if unknown:
        raise UserError(f"stages: no {unknown[0]}; there are {', '.join(LINKS)}")
    folder = Path(output).absolute()
    overrides = {
        stage: [*_paths(stage, folder, Path(input)), *_flat(chosen[stage])] for stage in LINKS if stage in stages
    }
    options = {stage: _composed(stage, texts) for stage, texts in overrides.items()}  # all are checked before any work
    for stage, texts in overrides.items():
        link = LINKS[stage]
        own, inputs = _split(link, options[stage])
        ready = Stage(stage, own, inputs, folder / link.folder, link.last)
        if not run_stage(ready, folder / "stamps", partial(_run, stage, texts), partial(print, flush=True)):
            print(f"{stage}: has not ended; run the same command again")
            return
    print(f"{output}: {', '.join(overrides)} done")


def _paths(stage: str, folder: Path, source: Path) -> Iterator[str]:
    """Where a stage reads and writes, as overrides of its configuration."""
    link = LINKS[stage]
    for option, origin in link.reads.items():
        yield f"{option}={json.dumps(str(source if origin == 'input' else folder / LINKS[origin].folder))}"
    yield f"{link.output}={json.dumps(str(folder / link.folder))}"


def _flat(options: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Nested options as overrides: "trainer.max_epochs=3"."""
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}={json.dumps(value)}"


def _composed(stage: str, overrides: list[str]) -> dict[str, Any]:
    """All options of a stage, checked. Raises UserError that names the stage."""
    folder, _, file = CONFIGS.get(stage, stage).rpartition("/")
    GlobalHydra.instance().clear()
    run = runpy.run_path(str(HERE / f"{stage}.py"))["main"].__wrapped__
    try:
        with initialize_config_dir(str(CONFIG_DIR / folder), version_base="1.3"):
            config = compose(file, overrides)
        check(config, run)
    except (UserError, OmegaConfBaseException, HydraException) as error:
        raise UserError(f"{stage}: {explained(error, run)}") from None
    return plain(config)


def _split(link: Link, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Path]]:
    """What tells the results of a stage: its options without paths, and the files that stand for what it reads."""
    _take(options, link.output)
    given = {option: _take(options, option) for option in link.reads}
    inputs = {option: _standing_for(Path(value)) for option, value in given.items() if value and Path(value).exists()}
    return options | {option: value for option, value in given.items() if option not in inputs}, inputs


def _standing_for(path: Path) -> Path:
    """The file that a stage wrote last, of a folder that a stage made."""
    ends = (path / link.last for link in LINKS.values())
    return next((end for end in ends if end.is_file()), path)


def _take(options: dict[str, Any], option: str) -> Any:
    *groups, key = option.split(".")
    for group in groups:
        options = options[group]
    return options.pop(key)


def _run(stage: str, overrides: list[str]) -> None:
    """In a process of its own; where it fails it has said why, and its exit status is ours."""
    status = subprocess.run([sys.executable, HERE / f"{stage}.py", *overrides]).returncode
    if status:
        raise SystemExit(status)


def _open_stages(arguments: list[str]) -> list[str]:
    """Options of stages may be new to the configuration: Hydra's ++ in front of them."""
    return [f"++{text}" if text.partition(".")[0] in LINKS and "=" in text else text for text in arguments]


if __name__ == "__main__":
    sys.argv[1:] = _open_stages(sys.argv[1:])
    main()
