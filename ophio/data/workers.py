"""Jobs in other processes, where a job that takes its process down (out of memory, a crash) stops no other."""

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TypeVar

from ophio.errors import UserError
from ophio.forks import become_worker
from ophio.memory import keep_freed_memory

START_METHOD = "spawn"  # forking a process in which torch or Arrow have started threads may deadlock

Job = TypeVar("Job")
Result = TypeVar("Result")
Done = tuple[Job, Result]


@dataclass(frozen=True)
class Died:
    """In place of a result: the job ended its process, though nothing else was running."""


def run_each(function: Callable[[Job], Result], jobs: Iterable[Job], num_workers: int) -> Iterator[Done]:
    """Every job with its result, in the order in which they end; `Died` for a job that kills its process.

    When a process dies, nobody can tell on which of the running jobs. These are then done again, one at a time: with
    all the memory to itself, a job may well succeed. Exceptions in `function` are raised here.

    Raises UserError when processes cannot be started at all.
    """
    waiting = deque(jobs)
    while waiting:
        suspects = yield from _until_one_dies(function, waiting, num_workers)
        if len(suspects) == 1:
            yield suspects[0], Died()
        else:
            yield from run_each(function, suspects, num_workers=1)


def _until_one_dies(
    function: Callable[[Job], Result], waiting: deque[Job], num_workers: int
) -> Generator[Done, None, list[Job]]:
    """Takes jobs from `waiting` until there are none, or a process dies: returns what was then in work."""
    running = {}
    with _pool(min(num_workers, len(waiting))) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < num_workers:
                    job = pool.submit(function, waiting[0])
                    running[job] = waiting.popleft()
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for job in ended:
                    result = job.result()
                    yield running.pop(job), result
        except BrokenProcessPool:
            _check_that_workers_start()
            return list(running.values())
    return []


def _pool(num_workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(num_workers, get_context(START_METHOD), _start_worker)


def _check_that_workers_start() -> None:
    with _pool(1) as pool:
        try:
            pool.submit(int).result()
        except BrokenProcessPool:
            hint = "a script that prepares data needs `if __name__ == '__main__':`; num_workers=1 starts none"
            raise UserError(f"worker processes die at once: {hint}") from None


def _start_worker() -> None:
    """A worker without warnings."""
    become_worker()
    keep_freed_memory()
    warnings.simplefilter("ignore")
