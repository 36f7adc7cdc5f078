"""`lance-prep doctor`: what this machine has, and what to do about what is missing; `completion` for its shell."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import click

from lance_prep import __version__
from lance_prep.cli.common import as_options, command, json_option, print_json, printable
from lance_prep.errors import LancePrepError, counted, size
from lance_prep.process import install_advice

#: Seconds to wait for the Hub, and for Java.
WAIT = 10
#: A build refuses a disk that it would fill; below this, even small ones may.
LITTLE_DISK = 5 << 30


@dataclass(frozen=True)
class Finding:
    """A finding about one part of the environment.

    Attributes:
        state: `ok`; `absent`, if it is needed only for some commands; or `problem`.
        advice: what to do, unless all is well.
    """

    group: str
    name: str
    state: Literal["ok", "absent", "problem"]
    found: str
    advice: str = ""


@command(
    "doctor",
    "doctor --tokenizer lance-prep:sample",
    about="Reports Python, the libraries, the Hub, disks, Java and Spark, torch and GPU. The exit code is 1 if "
    "something is missing that every command needs, or if the tokenizer cannot be used.",
)
@click.option("--tokenizer", metavar="NAME", help="Say which backend this tokenizer gets, and why.")
@click.option("--offline", is_flag=True, help="Do not ask the Hub.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, tokenizer: str | None, offline: bool, as_json: bool) -> None:
    checks: list[Callable[[], Iterator[Finding]]] = [_machine, _libraries]
    if tokenizer is not None:
        checks.append(lambda: _tokenizer(tokenizer))
    checks += [] if offline else [_hub]
    checks += [_disks, _spark, _torch]
    found: list[Finding] = []
    for check in checks:
        for each in check():
            if not as_json:
                _print(each, first=not found or found[-1].group != each.group)
            found.append(each)
    problems = [each for each in found if each.state == "problem"]
    if as_json:
        print_json({"ok": not problems, "findings": [asdict(each) for each in found]})
    else:
        absent = sum(each.state == "absent" for each in found)
        click.echo(f"\n{counted(len(problems), 'problem')}, {absent} absent that only some commands need")
    if problems:
        ctx.exit(1)


def _print(each: Finding, *, first: bool) -> None:
    """Print a finding as soon as it is known: importing torch takes seconds."""
    if first:
        click.echo(each.group)
    mark = {"ok": "ok     ", "absent": "absent ", "problem": "PROBLEM"}[each.state]
    click.echo(printable(f"  {mark}  {each.name}: {each.found}"))
    if each.advice:
        click.echo(printable(f"           try: {as_options(each.advice)}"))


def _machine() -> Iterator[Finding]:
    import psutil

    memory = f"{psutil.cpu_count() or 0} CPUs, {size(psutil.virtual_memory().total)} of memory"
    yield Finding("machine", "system", "ok", f"{platform.system()} {platform.machine()}, {memory}")
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    yield Finding("machine", "Python", "ok" if good else "problem", version, "" if good else "use Python 3.11 or later")


def _libraries() -> Iterator[Finding]:
    """Compare what is installed with what the package says that it requires."""
    missing: dict[str, list[str]] = {}
    present: dict[str, list[str]] = {}
    for line in metadata.requires("lance-prep") or ():
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)", line)
        name = re.match(r"[\w.-]+", line)
        group = extra[1] if extra else ""
        if name is None or group in ("test", "dev", "bench", "docs") or name[0] == "lance-prep":
            continue
        try:
            present.setdefault(group, []).append(f"{name[0]} {metadata.version(name[0])}")
            missing.setdefault(group, [])
        except metadata.PackageNotFoundError:
            missing.setdefault(group, []).append(name[0])
    yield Finding("libraries", "lance-prep", "ok", __version__)
    for group, names in missing.items():
        have = ", ".join(present.get(group, []))
        label = f"extra {group}" if group else "required"
        if not names:
            yield Finding("libraries", label, "ok", have)
            continue
        what = f"{', '.join(names)} not installed" + (f"; {have}" if have else "")
        yield Finding("libraries", label, "absent" if group else "problem", what, install_advice(group))


def _tokenizer(name: str) -> Iterator[Finding]:
    from lance_prep.recipe import load_recipe
    from lance_prep.tokenizer import chosen_backend, load_tokenizer

    try:
        recipe = load_recipe(("sample",), {"tokenizer": name, "eos_token": None})
        spec = load_tokenizer(recipe)
        backend, why = chosen_backend(spec, recipe)
    except LancePrepError as error:
        yield Finding("tokenizer", name, "problem", str(error), error.advice)
        return
    yield Finding("tokenizer", name, "ok", f"{spec.vocab_size:,} ids, {spec.dtype}, sha256 {spec.sha256[:12]}")
    yield Finding("tokenizer", "backend", "ok", f"{backend}: {why}")


def _hub() -> Iterator[Finding]:
    import huggingface_hub
    from huggingface_hub import constants

    endpoint = constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        yield Finding("Hub", endpoint, "absent", "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE to use the Hub")
        return
    begun = time.monotonic()
    try:
        response = huggingface_hub.get_session().head(endpoint, timeout=WAIT)
    except Exception as error:  # of the HTTP client that huggingface_hub uses, which is not ours to name
        said = f"does not answer ({type(error).__name__})"
        yield Finding("Hub", endpoint, "absent", said, "check the network and HF_ENDPOINT; local files need no Hub")
        return
    waited = time.monotonic() - begun
    yield Finding("Hub", endpoint, "ok", f"answers in {waited:.2f} s (status {response.status_code})")
    token = huggingface_hub.get_token()
    login = "run `hf auth login`, for gated datasets and for push"
    if token is None:
        yield Finding("Hub", "login", "absent", "no token", login)
        return
    try:
        yield Finding("Hub", "login", "ok", str(huggingface_hub.whoami(token)["name"]))
    except Exception as error:  # the token is refused, or the answer is invalid
        yield Finding("Hub", "login", "problem", f"the token is not accepted ({type(error).__name__})", login)


def _disks() -> Iterator[Finding]:
    from huggingface_hub import constants

    places = {"current folder": Path.cwd(), "Hub cache": Path(constants.HF_HUB_CACHE)}
    for name, place in places.items():
        folder = next(each for each in (place, *place.parents) if each.exists())
        free = shutil.disk_usage(folder).free
        writable = os.access(folder, os.W_OK)
        said = f"{size(free)} free in {place}" + ("" if writable else ", which cannot be written to")
        if free < LITTLE_DISK or not writable:
            advice = "free some space" if writable else "choose another folder"
            yield Finding("disk", name, "absent", said, f"{advice}; `lance-prep build --dry-run` prints what is needed")
        else:
            yield Finding("disk", name, "ok", said)


def _spark() -> Iterator[Finding]:
    from lance_prep.engine import check_spark

    try:
        check_spark()
    except LancePrepError as error:
        yield Finding("Spark", "engine", "absent", str(error), error.advice)
        return
    java = Path(os.environ["JAVA_HOME"], "bin", "java") if os.environ.get("JAVA_HOME") else Path("java")
    try:
        done = subprocess.run([str(java), "-version"], capture_output=True, text=True, timeout=WAIT)
        version = (done.stderr or done.stdout).splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        yield Finding("Spark", "Java", "absent", f"{java} -version failed: {error}", "install Java 17 or later")
        return
    yield Finding("Spark", "engine", "ok", f"pyspark {metadata.version('pyspark')}, {version}")


#: Run in a process of its own: a broken installation of CUDA can end the process that imports torch.
_ASK_TORCH = """
import json, torch
devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps([torch.__version__, torch.version.cuda, [[each.name, each.total_memory] for each in devices]]))
"""


def _torch() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        yield Finding("training", "torch", "absent", "not installed", install_advice("train"))
        return
    done = subprocess.run([sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield Finding("training", "torch", "absent", f"cannot be imported: {said}", "install torch again")
        return
    version, cuda, devices = json.loads(done.stdout)
    yield Finding("training", "torch", "ok", version)
    for number, (name, memory) in enumerate(devices):
        yield Finding("training", f"GPU {number}", "ok", f"{name}, {size(memory)}")
    if not devices:
        built = f"torch is built for CUDA {cuda}" if cuda else "torch is built without CUDA"
        yield Finding("training", "GPU", "absent", f"torch finds none, and datasets are read without one; {built}")


#: Shell -> where its script is loaded from.
SHELLS = {
    "bash": 'eval "$(lance-prep completion bash)"    # in ~/.bashrc; needs bash 4.4 or later',
    "zsh": 'eval "$(lance-prep completion zsh)"     # in ~/.zshrc, after compinit',
    "fish": "lance-prep completion fish | source     # in ~/.config/fish/config.fish",
}


@command(
    "completion bash",
    "completion fish",
    about="Prints a script that completes commands, options, recipes, and tags of a dataset. Load it with a line in "
    "the shell's own file:\n\n\b\n" + "\n".join(SHELLS.values()),
)
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(ctx.find_root().command, {}, "lance-prep", "_LANCE_PREP_COMPLETE").source())
