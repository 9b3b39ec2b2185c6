"""Files that appear complete or not at all."""

import os
from contextlib import suppress
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
