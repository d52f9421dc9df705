"""The root command: finds the subcommands and turns every expected error into one line and exit code 2."""

import difflib
import errno
import os
import sys

import click

from s2ap_defend import __version__
from s2ap_defend.commands.deferred import COMMANDS, DeferredCommand
from s2ap_defend.errors import DefendError

PROGRAM = "s2ap-defend"
COMPLETE = "_S2AP_DEFEND_COMPLETE"
"""Set by a shell that wants completions, to the shell's name and what it wants."""

EXIT_ERROR = 2
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
TRAIN_MODULES = {
    "eagerpy",
    "foolbox",
    "jinja2",
    "lightning_fabric",
    "markupsafe",
    "matplotlib",
    "onnxscript",
    "pyautoattack",
    "safetensors",
    "scipy",
    "sklearn",
    "torch",
    "torchvision",
    "tritonclient",
}


class RootGroup(click.Group):
    """The group of all commands; they are imported when they are called."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands by the extra that they need."""
        width = max(len(str(command.name)) for command in COMMANDS)
        for extra in dict.fromkeys(command.extra for command in COMMANDS):
            rows = [
                (str(command.name).ljust(width), command.get_short_help_str(formatter.width - width - 6))
                for command in COMMANDS
                if command.extra == extra
            ]
            with formatter.section("Commands" if extra is None else f"Commands that need the extra [{extra}]"):
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of `args`, suggesting the nearest name when there is none."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(self.list_commands(ctx))}"
            raise click.UsageError(f"there is no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=RootGroup, commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Image classifiers that defend themselves, in one ONNX file.

    \b
    s2ap-defend harden digits -o model.onnx       train, prune, calibrate, export
    s2ap-defend evaluate model.onnx --recipe digits
    s2ap-defend classify model.onnx image.png
    s2ap-defend serve model.onnx                  http://127.0.0.1:8000
    """  # noqa: D301


def main() -> None:
    """Run the command line, or answer a shell that completes it; never returns."""
    wanted = os.environ.get(COMPLETE)
    if wanted:
        from click.shell_completion import shell_complete

        try:
            sys.exit(shell_complete(cli, {}, PROGRAM, COMPLETE, wanted))
        except (click.ClickException, ImportError):  # calling the command says it; here it would spoil the line
            sys.exit(EXIT_ERROR)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str], command: click.Command = cli, program: str = PROGRAM) -> int:
    """Run the command line, or another command by its name, and return the exit code.

    It is 0, or 2 after one line on standard error.
    """
    try:
        with command.make_context(program, list(arguments)) as context:
            result = command.invoke(context)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return EXIT_ERROR
    except click.UsageError as error:
        where = f" (see '{error.ctx.command_path} --help')" if error.ctx is not None else ""
        return _fail(error.format_message() + where)
    except click.ClickException as error:
        return _fail(error.format_message())
    except DefendError as error:
        return _fail(str(error))
    except (click.Abort, KeyboardInterrupt):
        more = "; what was finished is stored, run the same command again to go on"
        return _fail(f"interrupted{more if _resumes(command, arguments) else ''}")
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_ERROR
    except OSError as error:
        if error.errno in _OF_THE_DISK:
            return _not_written(error)
        if error.filename is None:
            raise
        return _fail(f"{os.fsdecode(error.filename)} cannot be used: {error.strerror}; check the path")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in TRAIN_MODULES:
            asked = arguments[0] if isinstance(command, click.Group) else program
            return _fail(f"{asked} needs {error.name}, of the extra [train]; pip install '.[train]' in a checkout")
        raise
    return result if isinstance(result, int) else 0


def _resumes(command: click.Command, arguments: list[str]) -> bool:
    """Whether the command that was called goes on where it was interrupted; one that is no group does."""
    if not isinstance(command, click.Group):
        return True
    asked = command.commands.get(arguments[0])
    return isinstance(asked, DeferredCommand) and asked.resumes


def _not_written(error: OSError) -> int:
    """Say that a disk is full or broken; what is still in the buffer of the output then goes nowhere."""
    if error.filename is None and sys.stdout is sys.__stdout__ and sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    where = f"{error.filename} cannot be written" if error.filename else "the output cannot be written"
    return _fail(f"{where}: {error.strerror or error}; make room, then run the same command again")


def _fail(message: str) -> int:
    from rich.console import Console

    from s2ap_defend.tables import harmless

    one_line = harmless(" ".join(message.split()))
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"Error: {one_line}", style="red", markup=False)
    return EXIT_ERROR
