"""Options against the signature that will receive them: a misspelt or ill-typed key is found before any work is done.

Objects are written as `_target_: package.Class` with plain constructor arguments, so the signature is the schema.
"""

import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from ophio.errors import UserError

_SPECIAL = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


def check(config: DictConfig, run: Callable[..., Any], path: str = "") -> None:
    """Raises UserError at the first key that its receiver does not know, does not get, or cannot use.

    `path`: of `config` in a larger configuration, such as "sampling.", for the message.
    """
    try:
        options = plain(config)
    except MissingMandatoryValue as error:
        raise UserError(f"{path}{error.full_key}: required, but not given (see --help)") from None
    _check_call(options, run, path)


def plain(config: DictConfig) -> dict[str, Any]:
    """All options in plain containers, references to others filled in. Raises MissingMandatoryValue at a missing one."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True))


def as_annotated(options: Mapping[str, Any], run: Callable[..., Any]) -> dict[str, Any]:
    """Options that `check` has passed, with whole numbers as floats where the signature has floats: 5 and 5.0 are one
    number to who writes YAML, but not to who reads the type."""
    hints = typing.get_type_hints(run.__init__ if inspect.isclass(run) else run)
    return {key: _converted(value, hints.get(key)) for key, value in options.items()}


def _converted(value: Any, hint: Any) -> Any:
    if isinstance(value, list) and typing.get_origin(hint) in (list, Sequence):
        return [_converted(item, typing.get_args(hint)[0]) for item in value]
    return float(value) if hint is float and type(value) is int else value


def _check_call(arguments: Mapping[str, Any], function: Callable[..., Any], path: str) -> None:
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    for key, value in arguments.items():
        if key in _SPECIAL:
            continue
        where = f"{path}{key}"
        if key not in parameters:
            raise UserError(f"{where}: no such option; {there_are(parameters)}")
        if key in hints and not _fits(value, hints[key]):
            raise UserError(f"{where}={value!r}: expected {_readable(hints[key])}")
    for key, value in arguments.items():  # after these: what refers to one of them would be blamed for it
        _check_inside(value, f"{path}{key}.")
    if not arguments.get("_partial_"):
        for name, parameter in parameters.items():
            if parameter.default is parameter.empty and name not in arguments:
                raise UserError(f"{path}{name}: required, but not given")


def _check_inside(value: Any, path: str) -> None:
    if isinstance(value, Mapping):
        if "_target_" in value:
            _check_call(value, _locate(value["_target_"], path), path)
        else:
            for key, inner in value.items():
                _check_inside(inner, f"{path}{key}.")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_inside(inner, f"{path}{index}.")


def _locate(target: str, path: str) -> Callable[..., Any]:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise UserError(f"{path}_target_={target}: no such class or function ({error})") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value can be passed for an annotation; annotations of other kinds accept anything."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint is type(None):
        return value is None
    if hint is Path:
        return isinstance(value, str)
    if hint is ListConfig:
        return isinstance(value, list)
    if hint is DictConfig:
        return isinstance(value, Mapping)
    if origin in (list, Sequence):
        return isinstance(value, list) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(_fits(item, typing.get_args(hint)[1]) for item in value.values())
    if inspect.isclass(hint) and hint is not Any and isinstance(value, (str, int, float)):
        return isinstance(value, hint)
    return True


def _readable(hint: Any) -> str:
    return hint.__name__ if inspect.isclass(hint) else str(hint).replace("collections.abc.", "")


def there_are(names: Iterable[str]) -> str:
    """The end of a message about a name that is none of these."""
    return f"there are {', '.join(names)}"
