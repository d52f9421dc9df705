"""Options of a command from a TOML file and from the environment, and what they come to."""

import difflib
import json
import tomllib
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

__all__ = ["config_option", "print_settings"]

SOURCES = {
    ParameterSource.COMMANDLINE: "command line",
    ParameterSource.ENVIRONMENT: "environment",
    ParameterSource.DEFAULT_MAP: "file",
}


def _read(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Take a file's settings as the defaults of the command's options, which the environment and flags override."""
    if path is None:
        return
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise click.ClickException(f"cannot read the settings {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise click.ClickException(f"the settings {path} are no TOML: {error}") from error
    known = {_name_of(param): param for param in ctx.command.params if param.name not in {"config", "print_config"}}
    for name, value in table.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
            raise click.ClickException(f"the settings {path} have {name[:40]!r}, which is no option; {hint}")
        _check_kind(known[name], value, f"{name} of the settings {path}")
    ctx.default_map = {
        str(known[name].name): [value] if known[name].nargs == -1 and isinstance(value, str) else value
        for name, value in table.items()
    }


def _check_kind(param: click.Parameter, value: object, what: str) -> None:
    """Check what click would make something else of."""
    if param.nargs == -1 and isinstance(value, str):
        return
    if param.nargs == -1 or (isinstance(param, click.Option) and param.multiple):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise click.ClickException(f"{what} must be a {'text, or a ' * (param.nargs == -1)}list of texts")
    elif isinstance(param, click.Option) and param.is_flag:
        if not isinstance(value, bool):
            raise click.ClickException(f"{what} must be true or false")
    elif isinstance(param.type, click.types.FloatParamType | click.types.IntParamType):
        whole = isinstance(param.type, click.types.IntParamType)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise click.ClickException(f"{what} must be a {'whole ' if whole else ''}number")
    elif not isinstance(value, str):
        raise click.ClickException(f"{what} must be a text")


config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_read,
    help="Take what neither flags nor the environment say from this TOML file; its keys are the options' names.",
)


def print_settings(ctx: click.Context) -> None:
    """Print the options of a command as a file for `config_option`, each with where it comes from."""
    for param in ctx.command.params:
        name = str(param.name)
        if name in {"config", "print_config"} or not param.expose_value:
            continue
        value, source = ctx.params[name], ctx.get_parameter_source(name)
        if param.nargs == -1 and len(value) == 1:
            (value,) = value
        said = SOURCES.get(source, "default") if source is not None else "default"
        click.echo(
            f"# {_name_of(param)} is not set" if value is None else f"{_name_of(param)} = {_toml(value)}  # {said}"
        )


def _name_of(param: click.Parameter) -> str:
    return str(param.name) if isinstance(param, click.Argument) else max(param.opts, key=len).removeprefix("--")


def _toml(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, bool | int | float):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(str(value)).replace("\x7f", "\\u007f")  # a JSON text is one of TOML, but for this
