"""The commands by name: what `--help` and a shell show of them stands here, what they do is imported when called."""

from importlib import import_module

import click

ENTRY_POINTS = "s2ap_defend.commands"
OWN_PACKAGES = ("s2ap_defend", "s2ap_export", "s2ap_train")


class DeferredCommand(click.Command):
    """A command of which only the name and the help line are there until it is called.

    Args:
        name: Its name. Without an extra it is the function NAME of `s2ap_defend.commands.NAME`, dashes underscores.
        line: The first sentence of its help.
        extra: The extra that it needs; it is found by its entry point then.
        resumes: Whether the same command goes on where it was interrupted.
    """

    def __init__(self, name: str, line: str, *, extra: str | None = None, resumes: bool = False) -> None:
        super().__init__(name, help=line)
        self.extra = extra
        self.resumes = resumes

    def load(self) -> click.Command:
        """Import the command itself.

        Raises:
            ModuleNotFoundError: If it imports a library that is not installed.
            click.ClickException: If the installation does not know it, or names a place where it is not.
        """
        command: click.Command
        if self.extra is None:
            own = str(self.name).replace("-", "_")
            command = getattr(import_module(f"s2ap_defend.commands.{own}"), own)
            return command
        from importlib.metadata import entry_points

        found = list(entry_points(group=ENTRY_POINTS, name=str(self.name)))
        if not found:
            raise click.ClickException(f"{self.name} is no entry point of this installation; install s2ap-defend again")
        try:
            command = found[0].load()
        except (ImportError, AttributeError) as error:
            if isinstance(error, ImportError) and not (error.name or "").startswith(OWN_PACKAGES):
                raise
            raise click.ClickException(
                f"{self.name} is not where this installation says, in {found[0].value} ({error}); it is of another "
                "version: install s2ap-defend again"
            ) from error
        return command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:
        """The context of the command itself, which is thereby the one that is invoked or completed."""
        return self.load().make_context(info_name, args, parent, **extra)


COMMANDS = (
    DeferredCommand("bench", "Time a model file next to its bare classifier, its stages and what this machine allows."),
    DeferredCommand(
        "classify",
        "Purify, test and label images: files, folders, .npy or .npz of float32 [N, C, H, W] in [0, 1].",
    ),
    DeferredCommand("deploy", "Serve a model file on Ray Serve, by a YAML file: model, replicas, cpus, gpus, server."),
    DeferredCommand(
        "export",
        "Write MODEL for Triton (--triton DIR) or build its TensorRT engines (--tensorrt DIR), one of the two.",
    ),
    DeferredCommand("inspect", "Verify a model file and show its stages, members, decision and measured accuracy."),
    DeferredCommand(
        "plan", "Show exact error rates and expected members of a sequential test; refuse one that can never decide."
    ),
    DeferredCommand(
        "serve", "Serve model files: Open Inference Protocol v2 over HTTP and gRPC, a page at /, metrics at /metrics."
    ),
    DeferredCommand("serve-key", "Make an API key for the server, and print it once and its entry in the keys file."),
    DeferredCommand(
        "sign",
        "Sign a model file with a private key; `verify --key` with the public one says whether a file is that one.",
    ),
    DeferredCommand(
        "verify", "Check a model file in full: format, hashes, stages, golden answers, and where it runs here."
    ),
    DeferredCommand(
        "calibrate",
        "Give MODEL a new alarm boundary from new clean images, and another answer if asked, and write a new file.",
        extra="train",
    ),
    DeferredCommand(
        "choose-purifier",
        "Attack the purifiers of RECIPE's [choice] table and print which is best; nothing is exported.",
        extra="train",
        resumes=True,
    ),
    DeferredCommand(
        "compare",
        "Compare pruning runs: accuracy, robustness, sharpness and stability, with paired differences over seeds.",
        extra="train",
    ),
    DeferredCommand(
        "evaluate",
        "Attack MODEL with its test images, or those of a recipe, and print what is left of its accuracy.",
        extra="train",
        resumes=True,
    ),
    DeferredCommand(
        "harden",
        "Give your classifier, or that of RECIPE, back as one model file that defends itself.",
        extra="train",
        resumes=True,
    ),
    DeferredCommand(
        "prune",
        "Train, prune, fine-tune and measure the robust classifier of RECIPE, into one run folder.",
        extra="train",
        resumes=True,
    ),
    DeferredCommand(
        "score-model",
        "Train the purifier's score model of RECIPE and nothing else, and report what it can do.",
        extra="train",
        resumes=True,
    ),
)
