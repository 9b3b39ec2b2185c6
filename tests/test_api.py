"""The names of the package itself."""

import inspect
import subprocess
import sys

import pytest

import ophio


def test_every_name_is_there_with_a_docstring():
    assert ophio.__all__[0] == "__version__"
    for name in ophio.__all__[1:]:
        found = getattr(ophio, name)
        assert inspect.isclass(found) or inspect.isfunction(found)
        assert inspect.getdoc(found) and name in dir(ophio)


def test_importing_the_package_imports_no_torch():
    code = (
        "import ophio, sys; dir(ophio); assert 'torch' not in sys.modules; ophio.Protein; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match="no attribute 'decode'.*read_structure"):
        ophio.decode
