"""Commands whose flags show no type, and whose plain parameters are taken as they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command that takes text, paths and what is not given as they are; typer converts and checks all else."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return its parameters, and --help."""
        return _plain(super().get_params(ctx))


class Group(TyperGroup):
    """Commands under a name, whose own parameters are taken likewise."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return its parameters, and --help."""
        return _plain(super().get_params(ctx))


def _plain(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""  # it takes no value
        # typer imports pydantic to convert any value, which takes a fifth of a command's time. Older versions of it do
        # not say the type there, and do not import pydantic.
        kind = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
        if kind is not None and not parameter.required and "process_value" not in vars(parameter):
            parameter.process_value = partial(_value, parameter, kind, parameter.process_value)
    return parameters


def _value(parameter: Any, kind: Any, convert: Callable[[Any, Any], Any], context: Any, value: Any) -> Any:
    parser = getattr(parameter.type_descriptor.parameter_info, "parser", None)
    if parser is not None and isinstance(value, str):
        try:
            value = parser(value)
        except typer.BadParameter:
            return convert(context, value)  # which says whose value it is
    elif kind == list[str] and parser is None:
        value = [*value] if value else ()
    elif kind is Path and isinstance(value, str):
        value = Path(value)
    elif value is not None and not (isinstance(kind, type) and isinstance(value, kind)):
        return convert(context, value)
    return value if parameter.callback is None else parameter.callback(context, parameter, value)
