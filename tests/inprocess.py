"""Pipelines run in the process of the tests, which spares the imports."""

import sys
from collections.abc import Callable

from hydra.core.global_hydra import GlobalHydra


def run_pipeline(main: Callable[[], None], name: str, *options: str) -> int:
    """The exit status of `python pipelines/NAME.py OPTIONS`, whose decorated function is `main`."""
    argv = sys.argv
    sys.argv = [f"{name}.py", *options]
    try:
        main()
        return 0
    except SystemExit as end:
        return end.code
    finally:
        sys.argv = argv
        GlobalHydra.instance().clear()
