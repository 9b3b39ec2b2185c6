"""What a computation ran on, for cards and tables."""

import platform
from pathlib import Path

import torch


def device_name(device: torch.device | str) -> str:
    """The name of a GPU, or of the processor with the number of threads."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, threads: {torch.get_num_threads()}"
