"""Files and folders that appear complete or not at all."""

import hashlib
import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ophio.errors import UserError


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file through another in the same folder: readers see the old content or the new, never a part.

    Raises UserError where that is not possible.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(data)
        os.replace(unfinished, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def check_new_folder(folder: Path) -> None:
    """Raises UserError where something is there that is not an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: not an empty folder; give another one")


@contextmanager
def whole_folder(folder: Path) -> Generator[Path, None, None]:
    """A folder beside it to fill, which takes its name and place at the end; what an interrupted run left is removed."""
    unfinished = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    os.replace(unfinished, folder)


def sha256_of(path: Path) -> str:
    """Of the content of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def content_hash(path: Path) -> str:
    """Tells versions of a file apart: 16 digits of its SHA-256."""
    return sha256_of(path)[:16]


def contents_hash(paths: Sequence[Path]) -> str:
    """Tells versions of a set of files apart, whatever they are called."""
    return hashlib.sha256("".join(map(content_hash, paths)).encode()).hexdigest()[:16]
