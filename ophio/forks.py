"""Jobs in forked processes, which share what this one has loaded and start at once; `ophio.data.workers` has sturdier ones."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

import torch

from ophio.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")

_function: Callable[[Any], Any]  # in a forked process: what it is to do


def default_workers(jobs: int) -> int:
    """One process for each core that this one may use, where processes can be forked with torch in them (Linux)."""
    return min(jobs, len(os.sched_getaffinity(0))) if sys.platform == "linux" else 1


def each_forked(function: Callable[[Job], Result], jobs: Sequence[Job], num_workers: int) -> Iterator[Result]:
    """The result of every job, as they end; jobs start in their order. With one worker, in this process.

    Every process has one thread. An exception in `function` is raised here, and no further job is started. Raises
    UserError where a process dies.
    """
    if num_workers < 2 or len(jobs) < 2:
        yield from map(function, jobs)
        return
    pool = ProcessPoolExecutor(num_workers, get_context("fork"), _start, (function,))  # forked, not pickled
    try:
        for future in as_completed([pool.submit(_call, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool:
        raise UserError("a worker process died, perhaps of too little memory; run the same command again") from None
    finally:
        pool.shutdown(cancel_futures=True)  # waits for the jobs in work


def _call(job: Any) -> Any:
    return _function(job)


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    become_worker()


def become_worker() -> None:
    """One thread. On Ctrl-C this process ends its job; if its parent was killed, it ends itself."""
    torch.set_num_threads(1)  # where forked, GNU's OpenMP would wait for ever for threads that were not
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (parent := parent_process()) is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
