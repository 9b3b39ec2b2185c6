"""Docstrings: every public function and class has one, and whoever raises says so. Sources are parsed, not imported."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "ophio"
ERRORS = {"UserError", "ValueError"}
SAYS_SO = re.compile(r"\b[Rr]aise[sd]?\b|\brefuse|\b(User|Value)Error\b")
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def undocumented(module: ast.Module) -> Iterator[str]:
    """Public functions and classes without a docstring."""
    for node in module.body:
        if isinstance(node, (*FUNCTION, ast.ClassDef)) and node.name[0] != "_" and not ast.get_docstring(node):
            yield node.name


def silent(module: ast.Module) -> Iterator[str]:
    """Public functions and methods that raise in their own body, and tell neither there nor in their class."""
    for node in module.body:
        if isinstance(node, FUNCTION) and _is_public(node.name) and _raises(node) and not _tells(node):
            yield node.name
        if isinstance(node, ast.ClassDef) and _is_public(node.name) and not _tells(node):
            methods = (inner for inner in node.body if isinstance(inner, FUNCTION) and _is_public(inner.name))
            yield from (f"{node.name}.{method.name}" for method in methods if _raises(method) and not _tells(method))


def _is_public(name: str) -> bool:
    """Constructors are."""
    return not name.startswith("_") or name.startswith("__")


def _tells(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    return SAYS_SO.search(ast.get_docstring(node) or "") is not None


def _raises(node: ast.AST) -> bool:
    """Functions inside are not looked into: what they raise may be caught here."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.Raise) and inner.exc is not None:
            error = inner.exc.func if isinstance(inner.exc, ast.Call) else inner.exc
            if isinstance(error, ast.Name) and error.id in ERRORS:
                return True
        if not isinstance(inner, (*FUNCTION, ast.ClassDef, ast.Lambda)) and _raises(inner):
            return True
    return False


def _found(check) -> set[str]:
    modules = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    assert len(modules) > 100
    return {f"{path.relative_to(PACKAGE).as_posix()}: {name}" for path in modules for name in check(modules[path])}


def test_every_public_function_and_class_has_a_docstring():
    assert not _found(undocumented)


def test_whoever_raises_says_so():
    assert not _found(silent)


SOURCE = '''
def bare(): ...

def quiet(x):
    """Halves."""
    if x:
        raise ValueError(x)

def loud(x):
    """Halves. Raises UserError at 0."""
    raise UserError(x)

def around():
    """Errors of another kind, or of a function inside, do not count."""
    def inner():
        raise ValueError
    raise KeyError

def _private():
    raise ValueError

class Bare:
    def open(self): ...

class Told:
    """Refuses, with a UserError, what is empty."""
    def __init__(self):
        raise UserError

class Quiet:
    """A box."""
    def __post_init__(self):
        with suppress(OSError):
            raise UserError
    def open(self):
        """Raises ValueError."""
        raise ValueError
    def _close(self):
        raise ValueError
'''


def test_what_is_missing_is_found():
    module = ast.parse(SOURCE)
    assert [*undocumented(module)] == ["bare", "Bare"]
    assert [*silent(module)] == ["quiet", "Quiet.__post_init__"]
