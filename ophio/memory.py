"""How the C library keeps memory between one tensor and the next."""

import ctypes
import platform
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of mallopt(3)


def keep_freed_memory() -> None:
    """Freed memory stays with this process, and those forked from it, for the next tensor; glibc only, elsewhere nothing.

    By itself glibc gives every large block back and asks for it anew, filled with zeros, in the next layer: a sixth of
    the time of sampling, half of a decoder's.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
