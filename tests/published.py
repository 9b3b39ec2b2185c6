"""Tests that need the published weights of a package, which is installed without its dependencies."""

from importlib.metadata import PackageNotFoundError, distribution

import pytest


def needs(package: str, install: str) -> pytest.MarkDecorator:
    """Skips, with the command that would help, where the package is not installed."""
    try:
        distribution(package)
        installed = True
    except PackageNotFoundError:
        installed = False
    return pytest.mark.skipif(not installed, reason=f"no weights of {package} here: {install}")
