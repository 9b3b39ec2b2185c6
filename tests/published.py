"""Tests that need the published weights of a package, which is installed without its dependencies."""

from importlib.metadata import PackageNotFoundError, distribution

import pytest


def installed(package: str) -> bool:
    try:
        distribution(package)
        return True
    except PackageNotFoundError:
        return False


def needs(package: str, install: str) -> pytest.MarkDecorator:
    """Skips, with the command that would help, where the package is not installed."""
    return pytest.mark.skipif(not installed(package), reason=f"no weights of {package} here: {install}")
