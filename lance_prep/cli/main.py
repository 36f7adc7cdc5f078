"""The group of commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from lance_prep import __version__
from lance_prep.cli.stop import StopOnSignals

#: name -> (module, one line for the overview)
COMMANDS = {
    "build": ("lance_prep.cli.build", "Build a Lance token dataset from text."),
    "info": ("lance_prep.cli.info", "What a dataset is, and what it was made of."),
    "show": ("lance_prep.cli.show", "What a dataset's rows say, decoded."),
    "versions": ("lance_prep.cli.versions", "The versions of a dataset: when, how large, what made each."),
    "diff": ("lance_prep.cli.diff", "What differs between two versions: files, rows, tokens, recipe."),
    "tag": ("lance_prep.cli.tag", "Give a version of a dataset a name, or take a name away."),
    "restore": ("lance_prep.cli.restore", "Make an old version the latest again, as a new version."),
    "compact": ("lance_prep.cli.compact", "Merge small fragments into large ones, as a new version."),
    "prune": ("lance_prep.cli.prune", "Remove old versions, and the data files that only they have."),
    "verify": ("lance_prep.cli.verify", "Is a dataset whole: files, hashes, ledger, ids, lengths, counts."),
}

EXAMPLES = """\b
Examples:
  lance-prep build sample                 no network needed: a first look
  lance-prep build wikitext               WikiText-103 from the Hugging Face Hub
  lance-prep build data/*.jsonl.gz --tokenizer tokenizer.json -o data.lance
  lance-prep info sample.lance
  lance-prep show sample.lance --rows 5
"""


class _LazyGroup(click.Group):
    """Knows its commands by name and loads one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help) for name, (_, help) in COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    help="Text in, versioned Lance token dataset out, training at memory-map speed from it.",
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="lance-prep")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    ctx.obj = {"debug": debug}


def main() -> None:
    """Entry point of `lance-prep`: runs a command and exits."""
    sys.exit(run(sys.argv[1:], StopOnSignals(_say_stopped)))


def run(arguments: list[str], stop: StopOnSignals | None = None) -> int:
    """Run a command line; returns the exit code. Errors are printed as one line of what, one of what to do."""
    _set_defaults()
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = cli.main(arguments, standalone_mode=False)
        return int(code) if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _stopped(stop)
    except Exception as error:
        if stop is not None and stop.came:  # whatever it was that broke on the way out
            return _stopped(stop)
        if debug:
            raise
        return _fail(error)


def _fail(error: Exception) -> int:
    from lance_prep.errors import LancePrepError, translate

    ours = error if isinstance(error, LancePrepError) else translate(error, "")
    if ours is None:
        _say(
            f"{type(error).__name__}: {_one_line(error)}",
            "this is a defect of lance-prep: --debug shows where; please report it",
        )
        return 1
    _say(_one_line(ours), ours.advice)
    return ours.exit_code


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _say(what: str, advice: str) -> None:
    click.echo(f"error: {what}", err=True)
    if advice:
        click.echo(f"  try: {advice}", err=True)


def _stopped(stop: StopOnSignals | None) -> int:
    if stop is not None:
        stop.say()
    else:
        _say_stopped()
    return 1


def _say_stopped() -> None:
    _say("stopped", "run the same command again: a build goes on where it stopped")


def _set_defaults() -> None:
    """Settings of libraries that have to be there before they are loaded; what the user has set stays."""
    os.environ.setdefault("LANCE_LOG", "error")  # it warns of each dataset that it makes anew
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # there is one of our own
    if sys.platform == "linux":
        # Arrow's default, mimalloc, keeps what it once had: building 1 GB in two shards at once peaked at 1,120 MB, and
        # at 790 MB with jemalloc, at the same speed.
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
