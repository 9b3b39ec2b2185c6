"""Thousands of spoilt structure files: is each read, or refused in one line, in bounded time and memory?

    python benchmarks/fuzz_readers.py --num 10000

A reader in a process of its own takes one file after the other. It is given up, and a new one started, where it crashes, or
is beyond the limits of time and memory. Exit status: 0 where no file was worse than refused; the others are kept in --keep.
Runs where the operating system limits a process's memory (Linux).
"""

import argparse
import multiprocessing
import random
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from mutations import MUTATIONS, sources, spoil


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=10000, metavar="N", help="files (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first file; the next has the next (default: 0)")
    parser.add_argument("--seconds", type=float, default=20, help="for one file (default: 20)")
    parser.add_argument(
        "--megabytes", type=int, default=1000, help="for one file, beyond the program's (default: 1000)"
    )
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"), metavar="DIR", help="for files that failed")
    options = parser.parse_args()
    outcomes, slowest, largest = Counter(), (0.0, -1), (0, -1)
    whole = sources()
    start = time.monotonic()
    with TemporaryDirectory() as folder:
        reader = Reader(options.megabytes)
        for seed in range(options.seed, options.seed + options.num):
            path, data = made(seed, whole, Path(folder))
            path.write_bytes(data)
            began = time.monotonic()
            outcome, megabytes = reader.read(path, options.seconds)
            outcomes[outcome.split(":")[0]] += 1
            slowest = max(slowest, (time.monotonic() - began, seed))
            largest = max(largest, (megabytes, seed))
            if outcome not in ("read", "refused"):
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / path.name).write_bytes(data)
                print(f"{path.name}: {outcome}", flush=True)
            path.unlink()
        reader.stop()
    for outcome, count in outcomes.most_common():
        print(f"{outcome:>12}: {count}")
    print(f"{options.num} files in {time.monotonic() - start:.0f} s")
    print(f"slowest: {slowest[0]:.2f} s (seed {slowest[1]}); most memory: {largest[0]} MB (seed {largest[1]})")
    return 0 if outcomes["read"] + outcomes["refused"] == options.num else 1


def made(seed: int, whole: dict[str, list[bytes]], folder: Path) -> tuple[Path, bytes]:
    """The spoilt file of a seed, and a path for it."""
    draw = random.Random(seed)
    suffix = draw.choice(list(whole))
    zipped = draw.random() < 0.25
    mutations = draw.choices(MUTATIONS, k=draw.choice([1, 1, 2, 3]))
    data = spoil(draw.choice(whole[suffix]), mutations, seed, zipped)
    return folder / f"{seed}_{'_'.join(m.__name__ for m in mutations)}{suffix}{'.gz' if zipped else ''}", data


class Reader:
    """A process that reads files, with a limit on its memory, and that is replaced where it dies or hangs."""

    def __init__(self, megabytes: int):
        self.megabytes = megabytes
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, self.megabytes), daemon=True)
        self._process.start()
        other.close()
        self._pipe.recv()  # it has imported what it needs

    def read(self, path: Path, seconds: float) -> tuple[str, int]:
        """What became of the file, and by how many MB the process has ever grown."""
        self._pipe.send(path)
        try:
            if self._pipe.poll(seconds):
                return self._pipe.recv()
            outcome = f"hang: more than {seconds} s"
        except EOFError:
            self._process.join()
            outcome = f"crash: exit status {self._process.exitcode}"
        self.stop()
        self._start()
        return outcome, 0

    def stop(self) -> None:
        self._process.kill()
        self._process.join()


def serve(pipe: Connection, megabytes: int) -> None:
    from ophio.errors import UserError
    from ophio.io import read_chains, read_models, read_structure

    limit = (_status("VmSize") + megabytes) << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = _status("VmHWM")
    pipe.send("ready")
    while True:
        path = pipe.recv()
        outcomes = [_outcome(read, path, UserError) for read in (read_structure, read_chains, read_models)]
        worse = [outcome for outcome in outcomes if outcome not in ("read", "refused")]
        pipe.send(((worse or outcomes)[0], _status("VmHWM") - before))


def _outcome(read: Callable, path: Path, refusal: type[Exception]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = read(path)
        except refusal as error:
            text = str(error)
            if "MemoryError" in text:
                return f"memory: {text[:200]}"
            return (
                "refused"
                if str(path) in text and len(text.splitlines()) == 1 and len(text) < 1000
                else f"message: {text}"
            )
        except MemoryError:
            return "memory: more than the limit"
        except Exception as error:
            return f"error: {type(error).__name__}: {error}"
    proteins = found if isinstance(found, list) else [found]
    finite = all(protein.positions.isfinite().all() for protein in proteins)
    return "read" if finite else "not finite"


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    sys.exit(main())
