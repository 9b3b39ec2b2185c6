"""Configurations: where they are, and the decorator that makes a command of a function and its configuration."""

import functools
import inspect
import os
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ophio.errors import UserError, of_system
from ophio.memory import keep_freed_memory
from ophio.signatures import check, there_are

_INSTALLED = Path(__file__).parent / "configs"
CONFIG_DIR = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "configs"
os.environ["OPHIO_CONFIGS"] = str(CONFIG_DIR)  # a folder of configurations names it to share groups with the others


def pipeline(config_name: str) -> Callable[[types.FunctionType], Callable[[], None]]:
    """Decorator: a function whose parameters are the keys of `config_name`.yaml becomes a command.

    A folder in `config_name` ("diffusion/train_diffusion") has groups of its own: its `experiment`, for one.

    Bad input of any kind (UserError, a misspelt key) is printed as one line; the exit status is then 2. Ctrl-C: 130.
    --help prints the docstring of the function's module, and all options with the comments of their files.
    """

    folder, _, file = config_name.rpartition("/")

    def decorate(run: types.FunctionType) -> Callable[[], None]:
        @hydra.main(version_base="1.3", config_path=str(CONFIG_DIR / folder), config_name=file)
        def compose(config: DictConfig) -> None:
            try:
                check(config, run)
                run(**{str(key): config[key] for key in config})
            except (UserError, OmegaConfBaseException, HydraException) as error:
                _fail(error, 2)
            except OSError as error:
                _fail(of_system(error), 2)
            except KeyboardInterrupt as interruption:
                _fail(f"interrupted; {interruption}", 130)

        @functools.wraps(run)
        def main() -> None:
            if {"--help", "-h"} & set(sys.argv[1:]):
                print(help_text(config_name, run.__globals__["__doc__"]))
                return
            keep_freed_memory()
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors of composition come here, not into Hydra's report
            try:
                _check_choices(CONFIG_DIR / folder, sys.argv[1:])
                compose()
            except (UserError, OmegaConfBaseException, HydraException) as error:
                _fail(explained(error, run), 2)

        return main

    return decorate


def _fail(message: Exception | str, status: int) -> None:
    print(f"{Path(sys.argv[0]).stem}: {' '.join(str(message).split())}", file=sys.stderr)
    raise SystemExit(status) from None


def explained(error: Exception, run: Callable[..., None]) -> Exception:
    """The error, in our words where Hydra takes a misspelt key of `run` for a new one and says how to add it."""
    unknown = re.match(r"Could not override '([^']+)'", str(error))
    if unknown is None:
        return error
    outermost = unknown[1].split(".")[0]
    known = inspect.signature(run).parameters
    return UserError(f"{unknown[1]}: no such option; {'see --help' if outermost in known else there_are(known)}")


def _check_choices(folder: Path, overrides: Sequence[str]) -> None:
    """Raises UserError where a group of configurations is given what cannot be the name of one."""
    for override in overrides:
        group, _, value = override.partition("=")
        choices = sorted(path.stem for path in (folder / group).glob("*.yaml")) if group.isidentifier() else []
        if choices and not re.match(r"null$|[\[\"'a-zA-Z_]", value):
            raise UserError(f"{override}: expected the name of a configuration; {there_are(choices)}")


def help_text(config_name: str, about: str) -> str:
    """What --help prints: `about` the pipeline, then its options and those of its groups, as in their files."""
    folder, _, file = config_name.rpartition("/")
    path = CONFIG_DIR / folder / f"{file}.yaml"
    parts = [
        inspect.cleandoc(about),
        "Options, given as name=value. ??? must be given; null: none, or as the comment says.",
    ]
    parts.append(_own_options(path.read_text(encoding="utf-8")))
    for group, chosen in _groups(path):
        files = sorted((CONFIG_DIR / folder / group).glob("*.yaml")) or sorted((CONFIG_DIR / group).glob("*.yaml"))
        if chosen is None:
            lines = [f"{file.stem:20} {_first_comment(file)}" for file in files]
            parts.append("\n  ".join([f"{group}=NAME sets several options at once. NAME is one of", *lines]))
        else:
            text = next(file for file in files if file.stem == chosen).read_text(encoding="utf-8")
            parts.append(f"Given as {group}.name=value:\n\n{textwrap.indent(text, '  ')}".rstrip())
    parts.append("With --cfg job a command prints all its options as it would have them, and does nothing.")
    return "\n\n".join(parts)


def _own_options(text: str) -> str:
    """Of a configuration file, without what it tells Hydra and without its first comment."""
    blocks = re.split(r"^(?=[a-z_]+:)", text, flags=re.MULTILINE)[1:]
    return "".join(block for block in blocks if not block.startswith(("defaults:", "hydra:"))).rstrip()


def _groups(path: Path) -> Iterator[tuple[str, str | None]]:
    """Groups of a configuration, each with the choice that it has by default."""
    for entry in OmegaConf.load(path).defaults:
        if isinstance(entry, DictConfig):
            yield from ((str(key), value) for key, value in entry.items() if not str(key).startswith("override"))


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix("# ") for line in lines if line.startswith("# ") and "@package" not in line)
