"""One command per claim: makes a committed table again.

    python pipelines/reproduce.py table=generation archives=FOLDER

Reads `archives`/miniprotein.npz, monomers.npz and conformations.npz, of which corpora are made in `work` where they
are not there yet; writes what the pipelines write to `work`/TABLE, then copies the tables into `output`. Prints each
command before it runs, so that parts can be repeated by hand. Options: configs/reproduce.yaml.
"""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from ophio.config import pipeline
from ophio.errors import UserError

ROOT = Path(__file__).parents[1]
CORPORA = {
    "mini": "input={archives}/miniprotein.npz",
    "natural": "input=[{archives}/monomers.npz,{archives}/miniprotein.npz] filters.origins=[natural,predicted] filters.min_length=40",
    "conformations": "input={archives}/conformations.npz",
}
BACKBONES = {100: 5, 200: 5, 300: 3}  # samples of each length
TABLES = {  # name: (corpora, commands, {what they write: what it is called in `output`})
    "reconstruction": (
        ("mini", "natural"),
        (
            "pipelines/reconstruct.py corpus={work}/mini models=[mini,mini_latent] output={out}/mini",
            "pipelines/reconstruct.py corpus={work}/natural models=[monomer,monomer_17] bins=[40,128,256,513] output={out}/natural",
        ),
        {"mini/table.csv": "reconstruction_mini.csv", "natural/table.csv": "reconstruction_natural.csv"},
    ),
    "compression": (
        ("mini",),
        ("pipelines/compression_curve.py corpus={work}/mini output={out}",),
        {"table.csv": "curve.csv"},
    ),
    "generation": (
        ("mini",),
        ("pipelines/generation.py corpus={work}/mini num=1000 novelty=false output={out}",),
        {"generation.csv": "generation.csv"},
    ),
    "generation_steps": (
        ("mini",),
        (
            "pipelines/generation.py corpus={work}/mini num=100 steps=[10,20,30,50,100,200] idealize=[true] novelty=false "
            "natives=false output={out}",
        ),
        {"generation.csv": "generation_steps.csv"},
    ),
    "evaluation": (
        ("mini",),
        (
            "-m ophio.cli sample --num 200 --length 50-100 --seed 0 --out {out}/samples",
            "-m ophio.cli evaluate {out}/samples --num 200 --out {out}/report --controls {work}/mini "
            "--control-origin designed --reference {work}/mini --workers 2",
            "-m ophio.cli sample --num 2000 --length 50-100 --seed 0 --out {out}/samples",
            "-m ophio.cli select {out}/samples --num 200 --out {out}/selected",
            "-m ophio.cli evaluate {out}/selected --out {out}/selected_report --num-controls 0 "
            "--reference {work}/mini --workers 2",
            "-m ophio.cli select {out}/samples --num 200 --banded helix strand --out {out}/banded",
            "-m ophio.cli evaluate {out}/banded --out {out}/banded_report --num-controls 0 "
            "--reference {work}/mini --workers 2",
            "pipelines/export.py corpus={work}/mini origins=[designed] length=40-100 output={out}/natives",
            "-m ophio.cli evaluate {out}/natives --out {out}/natives_report --num-controls 0 --workers 2",
        ),
        {
            "report/table.csv": "evaluation.csv",
            "selected_report/table.csv": "evaluation_selected.csv",
            "banded_report/table.csv": "evaluation_banded.csv",
            "natives_report/table.csv": "evaluation_natives.csv",
        },
    ),
    "evaluation_backbones": (
        (),
        tuple(
            command
            for length, num in BACKBONES.items()
            for command in (
                f"-m ophio.cli sample --model backbone_diffusion --num {num} --length {length} --seed 0 --out {{out}}/samples_{length}",
                f"-m ophio.cli evaluate {{out}}/samples_{length} --out {{out}}/report_{length} --sequences 4 --num-controls 0",
            )
        ),
        {f"report_{length}/table.csv": f"evaluation_backbones_{length}.csv" for length in BACKBONES},
    ),
    "quality": (
        ("mini",),
        ("pipelines/quality.py corpus={work}/mini num=16 sequences=3 output={out}",),
        {"quality.csv": "quality.csv"},
    ),
    "interpolation": (
        ("conformations",),
        (
            "pipelines/interpolate.py corpus={work}/conformations models=[mini_latent,monomer] methods=[blend,rigid,linear] finish=[true] output={out}",
        ),
        {
            "pairs.csv": "interpolation.csv",
            "approach.csv": "interpolation_approach.csv",
            "smoothness.csv": "interpolation_smoothness.csv",
        },
    ),
    "speed": ((), ("benchmarks/equivariant_layers.py", "benchmarks/scaling.py", "benchmarks/data_loading.py"), {}),
}


@pipeline("reproduce")
def main(table: str, archives: str, work: str, output: str) -> None:
    if table not in TABLES:
        raise UserError(f"table={table}: not one of {', '.join(TABLES)}")
    corpora, commands, files = TABLES[table]
    folders = {"archives": archives, "work": work, "out": f"{work}/{table}"}
    for name in corpora:
        if not (Path(work) / name / "corpus.json").exists():
            _run(f"pipelines/prepare_data.py output={{work}}/{name} {CORPORA[name]}", folders)
    for command in commands:
        _run(command, folders)
    Path(output).mkdir(parents=True, exist_ok=True)
    for made, name in files.items():
        shutil.copyfile(Path(folders["out"]) / made, Path(output) / name)
        print(f"{output}/{name}")


def _run(command: str, folders: dict[str, str]) -> None:
    words = shlex.split(command.format(**{name: shlex.quote(path) for name, path in folders.items()}))
    print("python", shlex.join(words), flush=True)
    if words[0] != "-m":
        words[0] = str(ROOT / words[0])
    if subprocess.run([sys.executable, *words]).returncode:
        raise UserError(f"{words[0]}: failed, see above; run the same command again to go on")


if __name__ == "__main__":
    main()
