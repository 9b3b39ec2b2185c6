"""Stages that build on each other, each done once: one runs again only where its options or what it reads have changed.

    OUTPUT/stamps/STAGE.json    what a stage was started with, and whether it ended

What an earlier choice of options made is never deleted: its folder is moved aside, to FOLDER.1, FOLDER.2, ...
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ophio.errors import UserError
from ophio.files import write_whole

IRRELEVANT = {"num_workers", "device", "devices", "accelerator", "max_time"}  # options that change no result


@dataclass(frozen=True)
class Stage:
    """One stage, ready to run.

    Args:
        options: that tell its results, nested; paths of what it reads and writes are no part of them.
        inputs: what it reads, by name: files, or folders of files.
        output: the folder that it writes.
        last: the file in there that it writes last.
    """

    name: str
    options: Mapping[str, Any]
    inputs: Mapping[str, Path]
    output: Path
    last: str


def run_stage(stage: Stage, stamps: Path, run: Callable[[], None], say: Callable[[str], None] = print) -> bool:
    """Runs a stage where it has to, and returns whether it has ended: `run` may stop before (its time is up).

    A stage that was interrupted goes on in its folder. Raises UserError where something that it reads is missing.
    """
    file = stamps / f"{stage.name}.json"
    now = {"options": _relevant(stage.options), "inputs": {name: identity(path) for name, path in stage.inputs.items()}}
    before = _read(file)
    changes = _changes(before, now)
    if before and not changes and before.get("result") is not None and before["result"] == _result(stage):
        say(f"{stage.name}: done, nothing has changed")
        return True
    if stage.output.exists() and (changes or not before):
        aside = _free_name(stage.output)
        stage.output.rename(aside)
        say(f"{stage.name}: {changes[0] if before else 'not made by this chain'}; what was there is now {aside}")
    say(f"{stage.name}: {'goes on' if before and not changes else 'starts'}")
    stamps.mkdir(parents=True, exist_ok=True)
    _write(file, now)
    run()
    result = _result(stage)
    _write(file, now | {"result": result})
    return result is not None


def identity(path: Path) -> str:
    """Of a file its content; of a folder the names, sizes and times of change of its files.

    Raises UserError where there is nothing.
    """
    if path.is_file():
        return _file_hash(path)
    if not path.is_dir():
        raise UserError(f"{path}: missing: run the stage that makes it, or give another path")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listed = [(str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _result(stage: Stage) -> str | None:
    """None where the stage has not ended."""
    file = stage.output / stage.last
    return _file_hash(file) if file.is_file() else None


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(2**20):
            digest.update(data)
    return digest.hexdigest()


def _relevant(options: Any) -> Any:
    if isinstance(options, Mapping):
        return {key: _relevant(value) for key, value in options.items() if key not in IRRELEVANT}
    if isinstance(options, Sequence) and not isinstance(options, str):
        return [_relevant(value) for value in options]
    return options


def _changes(before: Mapping | None, now: Mapping) -> list[str]:
    """The first of them is what a user is told."""
    if before is None:
        return ["no stamp"]
    options = _differences(before.get("options", {}), now["options"])
    others = [
        f"its {name} is another" for name, value in now["inputs"].items() if before.get("inputs", {}).get(name) != value
    ]
    return options + others


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*before, *now])
        return [
            line
            for key in keys
            for line in _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if before == now else [f"{path} is {now}, was {before}"]


def _free_name(folder: Path) -> Path:
    names = (folder.with_name(f"{folder.name}.{number}") for number in range(1, 10**6))
    return next(name for name in names if not name.exists())


def _read(file: Path) -> dict | None:
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: damaged ({error}): remove it, and the stage starts anew") from None


def _write(file: Path, stamp: Mapping) -> None:
    write_whole(file, (json.dumps(stamp, indent=1) + "\n").encode())
