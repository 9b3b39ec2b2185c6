"""Time and memory of encoding, and of reconstruction, against chain length: both should grow linearly.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py [MODEL]

Writes scaling.md and scaling.png beside it. Each length runs in a process of its own (peak memory is a property of a
process), one thread, on made-up chains. Memory is the peak above the same process after a pass over 8 residues.

Once with 8,192 residues at a time, in as many chains as that takes: what a residue costs. Once with one chain at a time,
where a call's fixed costs stand out on short ones.
"""

import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from ophio.autoencoder import Autoencoder
from ophio.memory import keep_freed_memory
from ophio.protein import Protein, stack
from ophio.tables import markdown

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
BATCH = 8192  # residues
REPEATS = 5
TASKS = ("encode", "reconstruct")
HERE = Path(__file__).parent


def chain(num_residues: int) -> Protein:
    """Noise along a helix, types in turn: cost does not depend on what the atoms are."""
    generator = torch.Generator().manual_seed(0)
    turn, rise = 1.745 * torch.arange(num_residues), 1.5 * torch.arange(num_residues)
    ca = torch.stack([2.3 * turn.cos(), 2.3 * turn.sin(), rise], dim=-1)
    positions = ca[:, None] + 1.5 * torch.randn(num_residues, 14, 3, generator=generator)
    residue_type = torch.arange(num_residues) % 20
    mask = torch.ones(num_residues, 14, dtype=torch.bool)
    return Protein.from_atoms(positions, mask, residue_type)


@torch.no_grad()
def measure(model_name: str, task: str, num_residues: int, chains: int) -> tuple[float, float]:
    """Median seconds of a pass, and peak memory in MB."""
    torch.set_num_threads(1)
    keep_freed_memory()
    model = Autoencoder.from_pretrained(model_name)
    run = model.encode if task == "encode" else lambda protein: model.decode(model.encode(protein))
    run(stack([chain(8)]))
    protein = stack([chain(num_residues)] * chains)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        run(protein)
        seconds.append(time.process_time() - start)
    return sorted(seconds)[REPEATS // 2], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def row(model_name: str, task: str, length: int, chains: int) -> dict:
    command = [sys.executable, __file__, model_name, task, str(length), str(chains)]
    seconds, memory = map(float, subprocess.check_output(command, text=True).split())
    each = {"ms a residue": 1000 * seconds / (length * chains), "KB a residue": 1024 * memory / (length * chains)}
    return {"task": task, "residues": length, "chains": chains, "CPU s": seconds, "peak MB": memory, **each}


def plot(rows: list[dict]) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axis, column in zip(axes, ("ms a residue", "KB a residue"), strict=True):
        for task in TASKS:
            for label, style, kept in (("8,192 residues", "-", BATCH), ("one chain", ":", 0)):
                points = [
                    (entry["residues"], entry[column])
                    for entry in rows
                    if entry["task"] == task and entry["chains"] == max(1, kept // entry["residues"])
                ]
                axis.plot(*zip(*points, strict=True), marker="o", ls=style, label=f"{task}, {label}")
        axis.set(xlabel="residues", ylabel=column, xscale="log", ylim=(0, None))
        axis.legend()
    figure.savefig(HERE / "scaling.png", dpi=120)


def main(model_name: str) -> None:
    batches = [lambda length: BATCH // length, lambda length: 1]
    rows = [row(model_name, task, length, of(length)) for of in batches for task in TASKS for length in LENGTHS]
    even = rows[: len(TASKS) * len(LENGTHS)]
    for task in TASKS:
        for column in ("ms a residue", "KB a residue"):
            values = [entry[column] for entry in even if entry["task"] == task]
            print(f"{task}, {column}: highest over lowest {max(values) / min(values):.2f}")
    title = f"`{model_name}`, one thread, {platform.machine()}, torch {torch.__version__}, median of {REPEATS} passes"
    text = f"{title}; made by `benchmarks/scaling.py`\n\n{markdown(rows)}\n\n![a residue](scaling.png)\n"
    (HERE / "scaling.md").write_text(text)
    print(text)
    plot(rows)


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "mini"
    if len(sys.argv) > 2:
        print(*measure(name, sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    else:
        main(name)
