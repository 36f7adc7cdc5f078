"""The group of commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import keyword
import os
import sys
from contextlib import suppress
from copy import copy
from importlib import import_module

import click

from lance_prep import __version__
from lance_prep.cli.common import DEBUG, as_options, examples_text, printable
from lance_prep.cli.progress import show_notices
from lance_prep.cli.stop import StopOnSignals

#: name -> (module, first line of help). A command is a function of its name in that module, and a line here.
COMMANDS = {
    "build": ("build", "Build a Lance token dataset from text."),
    "recipes": ("recipes", "List the built-in recipes, or print one to copy and edit."),
    "download": ("download", "Download the text of a collection's sources, by category."),
    "info": ("look", "Print what a dataset is and how it was built."),
    "show": ("show", "Print rows, decoded to text."),
    "sql": ("sql", "Run an SQL query on a dataset."),
    "versions": ("history", "List a dataset's versions: when, how large, and what made each."),
    "diff": ("diff", "Compare two versions, datasets or collections."),
    "tag": ("history", "Give a version a name, or delete the name."),
    "restore": ("history", "Restore an old version as a new, latest version."),
    "compact": ("maintain", "Merge small fragments into large ones, as a new version."),
    "prune": ("maintain", "Remove old versions and the data files that only they use."),
    "index": ("index", "Index JSONL files in place, for random access to their records."),
    "verify": ("maintain", "Check a dataset's integrity: files, hashes, ledger, ids, lengths and counts."),
    "export": ("exchange", "Write a dataset or a collection as files that other programs read."),
    "import": ("ids", "Make a dataset of token ids that another program wrote."),
    "pull": ("pull", "Copy a dataset or a collection from the Hugging Face Hub."),
    "push": ("hub", "Upload a dataset or a collection to the Hugging Face Hub, in one commit."),
    "report": ("report", "Write a report about a dataset or a collection, as one HTML file."),
    "completion": ("environment", "Print the script that completes commands in bash, zsh or fish."),
    "doctor": ("environment", "Report what this machine has, and what to do about what is missing."),
}

#: The headings of the help, and the commands below each.
STAGES = {
    "Text to tokens": ("build", "recipes", "download", "index"),
    "Look at a dataset": ("info", "show", "sql", "report", "verify"),
    "Versions": ("versions", "diff", "tag", "restore", "compact", "prune"),
    "Other formats and places": ("export", "import", "push", "pull"),
    "This program": ("doctor", "completion"),
}

EXAMPLES = (
    "build sample                 # a small dataset; needs no network",
    "build wikitext               # WikiText-103 from the Hugging Face Hub",
    "build 'data/*.jsonl' --tokenizer tokenizer.json -o data.lance",
    "info sample.lance",
    "show sample.lance --limit 3",
)


class _LazyGroup(click.Group):
    """Imports a command when it is used, so that `--help` loads only click."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, help = COMMANDS[cmd_name]
        name = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        command: click.Command = copy(getattr(import_module(f"lance_prep.cli.{module}"), name))
        command.help = f"{help}\n\n{command.help}"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for stage, names in STAGES.items():
            with formatter.section(stage):
                formatter.write_dl([(name, COMMANDS[name][1]) for name in names if name in COMMANDS])


@click.group(
    cls=_LazyGroup,
    help="Turn text into a versioned Lance dataset of tokens, and stream it into training at memory-map speed.",
    epilog=examples_text(EXAMPLES),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="lance-prep")
def cli() -> None:
    pass


cli.params.append(DEBUG)


def main() -> None:
    """Run the command line of this process and exit. The entry point of `lance-prep`."""
    _replace_closed_streams()
    if not sys.platform.startswith(("linux", "darwin")):
        from lance_prep.errors import UNSUPPORTED

        _say(*UNSUPPORTED)
        sys.exit(1)
    try:
        code = run(sys.argv[1:], StopOnSignals(_say_stopped))
    except Exception:  # with --debug, `run` raises every error
        import traceback

        from lance_prep.errors import without_answers, without_credentials

        sys.stderr.write(without_credentials(without_answers(traceback.format_exc())))
        code = 1
    _flush_streams()
    sys.exit(code)


def _flush_streams() -> None:
    """Flush the standard streams, and connect one that cannot be written to the null device.

    Otherwise the interpreter flushes it at exit, fails, prints a traceback and changes the exit code to 120.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _replace_closed_streams() -> None:
    """Open the null device for standard streams that are closed.

    Otherwise a file of the dataset would get the number of a closed stream, and messages would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", closefd=False))


def run(arguments: list[str], stop: StopOnSignals | None = None) -> int:
    """Run a command line and return its exit code. Print an error as two lines: what is wrong and what to do."""
    _set_defaults()
    show_notices()
    state: dict[str, bool] = {}
    try:
        code = cli.main(arguments, prog_name="lance-prep", standalone_mode=False, obj=state)
        return int(code) if isinstance(code, int) else 0
    except click.ClickException as error:
        return _wrong_usage(error)
    except (KeyboardInterrupt, click.Abort):
        return _stopped(stop)
    except Exception as error:  # every error becomes a message here; `--debug` shows its traceback
        if stop is not None and stop.came:  # the error is a consequence of the signal
            return _stopped(stop)
        if state.get("debug"):
            raise
        return _fail(error)
    except BaseException as error:
        if type(error).__name__ != "PanicException" or state.get("debug"):  # of a Rust library; no `Exception`
            raise
        return _panicked(error)


def _panicked(error: BaseException) -> int:
    _say(
        f"a library failed: {_one_line(str(error))}",
        "leave out the file or tokenizer that it cannot read; --debug shows where it failed",
    )
    return 1


def _wrong_usage(error: click.ClickException) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):  # its message is the help
        click.echo(error.format_message(), err=True)
        return error.exit_code
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    if ctx is not None:
        click.echo(ctx.get_usage(), err=True)
    _say(_one_line(error.format_message()), f"see {ctx.command_path if ctx else 'lance-prep'} --help")
    return error.exit_code


def _fail(error: Exception) -> int:
    from lance_prep.errors import LancePrepError, RecipeError, translate

    ours = error if isinstance(error, LancePrepError) else translate(error, "")
    if ours is None:
        _say(
            f"{type(error).__name__}: {_one_line(str(error))}",
            "this is a defect of lance-prep; run the command with --debug and report the traceback",
        )
        return 1
    what, advice = _one_line(str(ours)), _one_line(ours.advice)
    if not isinstance(ours, RecipeError):  # its fields are what the user wrote into a file
        what, advice = as_options(what), as_options(advice)
    _say(what, advice)
    return ours.exit_code


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _say(what: str, advice: str) -> None:
    with suppress(OSError):  # if stderr is full, the exit code has to do
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
    _say("stopped", "run the same command again; a build, download, export, push or pull continues where it stopped")


def _set_defaults() -> None:
    """Set environment variables that libraries read when they are imported, unless the user has set them."""
    os.environ.setdefault("LANCE_LOG", "error")  # otherwise Lance warns about every dataset that it creates
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it warns about each dataset without a card
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # lance-prep shows its own
    if sys.platform == "linux":
        # Arrow's default allocator, mimalloc, does not return memory: building 1 GB in two shards at once peaked at
        # 1,120 MB, and with jemalloc at 790 MB, at the same speed.
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
