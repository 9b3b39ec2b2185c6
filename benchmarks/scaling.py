"""Time and memory of encode + decode against chain length: both should grow linearly.

    python benchmarks/scaling.py [MODEL] > benchmarks/scaling.md

Each length runs in a process of its own (peak memory is a property of a process), one thread, on a made-up chain.
Memory is the peak above the same process before the first pass at that length.
"""

import platform
import resource
import subprocess
import sys
import time

import torch

from ophio.autoencoder import Autoencoder
from ophio.protein import Protein
from ophio.tables import markdown

LENGTHS = (64, 128, 256, 512, 1024, 2048)
REPEATS = 5


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
def measure(model_name: str, num_residues: int) -> tuple[float, float]:
    """Median seconds of a pass, and peak memory in MB."""
    torch.set_num_threads(1)
    model = Autoencoder.from_pretrained(model_name)
    model.decode(model.encode(chain(8)))
    protein = chain(num_residues)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        model.decode(model.encode(protein))
        seconds.append(time.process_time() - start)
    return sorted(seconds)[REPEATS // 2], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main(model_name: str) -> None:
    rows = []
    for length in LENGTHS:
        command = [sys.executable, __file__, model_name, str(length)]
        seconds, memory = map(float, subprocess.check_output(command, text=True).split())
        rows.append(
            {
                "residues": length,
                "CPU s": seconds,
                "ms a residue": 1000 * seconds / length,
                "peak MB": memory,
                "KB a residue": 1024 * memory / length,
            }
        )
    print(f"`{model_name}`, one thread, {platform.machine()}, torch {torch.__version__}, median of {REPEATS} passes\n")
    print(markdown(rows))


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "mini"
    if len(sys.argv) > 2:
        print(*measure(name, int(sys.argv[2])))
    else:
        main(name)
