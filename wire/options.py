"""Options of a command line that several commands take, said once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])
Value = TypeVar("Value")


def with_options(*groups: tuple[Callable[[Command], Command], ...]) -> Callable[[Command], Command]:
    """Return a decorator that adds the groups' click options, in order."""

    def decorate(command: Command) -> Command:
        for group in reversed(groups):
            for option in reversed(group):
                command = option(command)
        return command

    return decorate


def each_parsed(
    parse: Callable[[str], Value],
) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], tuple[Value, ...]]:
    """Return the callback of an option that may be given several times; what `parse` refuses is bad usage."""

    def convert(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[Value, ...]:
        try:
            return tuple(parse(value) for value in values)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx=context, param=parameter) from error

    return convert
