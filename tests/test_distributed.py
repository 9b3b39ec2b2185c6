"""Several processes, one of which is killed: the same command goes on, and ends as if nothing had happened.

What two processes do when all goes well is tested in test_training.py (a step is that of the joined batch) and
test_sampling.py (every sample is made once).
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_sampling import ROOT, content, model, run  # noqa: F401
from test_training import corpus, start, wait_for_checkpoint, weights  # noqa: F401

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the second process in /proc")
TWO = [
    "trainer.devices=2",
    "trainer.strategy=ddp",
    "total_steps=30",
    "checkpoint_every=3",
    "trainer.limit_val_batches=0",
]


def second_process(first: subprocess.Popen) -> int:
    """The one that the first has started for rank 1."""
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    (second,) = (int(k) for k in children if b"LOCAL_RANK=1" in Path(f"/proc/{k}/environ").read_bytes())
    return second


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.01)


def test_training_goes_on_after_one_of_two_processes_was_killed(corpus, tmp_path):  # noqa: F811
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(corpus, killed, *TWO)
    wait_for_checkpoint(process, killed)
    os.kill(second_process(process), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (killed / "model.safetensors").exists(), "the run was over before a process was killed"
    for output in (killed, whole):
        process = start(corpus, output, *TWO)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert weights(killed) == weights(whole)


def test_sampling_goes_on_after_one_of_two_processes_was_killed(model, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    options = [
        f"weights={model}",
        "num=24",
        "length=24",
        f"output={out}",
        "batch_size=1",
        "accelerator=cpu",
        "devices=2",
    ]
    command = [sys.executable, str(ROOT / "pipelines" / "sample.py"), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(out.glob("*.pdb")), process)
    os.kill(second_process(process), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    there = content(out)
    assert 0 < len(there) < 24
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert run(model, tmp_path / "one", "--num", "24", "--length", "24", "--batch-size", "1") == 0
    assert content(out) == content(tmp_path / "one") and there.items() <= content(out).items()
    names = [json.loads(line)["name"] for line in (out / "samples.jsonl").read_text().splitlines()]
    assert sorted(names) == sorted(path.stem for path in out.glob("*.pdb")) and len(set(names)) == 24
    assert not list(out.glob("samples.jsonl.part*"))
