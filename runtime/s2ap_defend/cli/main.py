"""The root command: finds the subcommands and turns every expected error into one line and exit code 2."""

import difflib
import sys
from importlib.metadata import entry_points

import click
from rich.console import Console

from s2ap_defend import __version__
from s2ap_defend.cli.classify import classify
from s2ap_defend.cli.inspect import inspect
from s2ap_defend.cli.plan import plan
from s2ap_defend.cli.serve import serve
from s2ap_defend.errors import DefendError

ENTRY_POINTS = "s2ap_defend.commands"
EXIT_ERROR = 2
TRAIN_MODULES = {
    "eagerpy",
    "foolbox",
    "lightning_fabric",
    "matplotlib",
    "pyautoattack",
    "safetensors",
    "scipy",
    "sklearn",
    "torch",
    "torch_pruning",
    "torchvision",
    "tritonclient",
}


class RootGroup(click.Group):
    """A group whose further commands are loaded from entry points when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the built-in and the joined commands."""
        return sorted({*super().list_commands(ctx), *entry_points(group=ENTRY_POINTS).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by name, importing the package that brings it."""
        found = super().get_command(ctx, cmd_name)
        if found is not None:
            return found
        for entry in entry_points(group=ENTRY_POINTS, name=cmd_name):
            command = entry.load()
            return command if isinstance(command, click.Command) else None
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of `args`, suggesting the nearest name when there is none."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(self.list_commands(ctx))}"
            raise click.UsageError(f"there is no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=RootGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="s2ap-defend")
def cli() -> None:
    """Image classifiers that defend themselves, in one ONNX file.

    \b
    s2ap-defend harden digits -o model.onnx       train, prune, calibrate, export
    s2ap-defend evaluate model.onnx --recipe digits
    s2ap-defend classify model.onnx image.png
    s2ap-defend serve model.onnx                  http://127.0.0.1:8000
    """  # noqa: D301


cli.add_command(classify)
cli.add_command(inspect)
cli.add_command(plan)
cli.add_command(serve)


def main() -> None:
    """Run the command line; never returns."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str], command: click.Command = cli, program: str = "s2ap-defend") -> int:
    """Run the command line, or another command by its name, and return the exit code.

    It is 0, or 2 after one line on standard error.
    """
    try:
        with command.make_context(program, list(arguments)) as context:
            result = command.invoke(context)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        where = f" (see '{error.ctx.command_path} --help')" if error.ctx is not None else ""
        return _fail(error.format_message() + where)
    except click.ClickException as error:
        return _fail(error.format_message())
    except DefendError as error:
        return _fail(str(error))
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted; finished steps are kept, run the same command again to resume")
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_ERROR
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in TRAIN_MODULES:
            asked = arguments[0] if arguments else "this command"
            return _fail(f"{asked} needs {error.name}; install it with: pip install 's2ap-defend[train]'")
        raise
    return result if isinstance(result, int) else 0


def _fail(message: str) -> int:
    one_line = " ".join(message.split())
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"Error: {one_line}", style="red", markup=False)
    return EXIT_ERROR
