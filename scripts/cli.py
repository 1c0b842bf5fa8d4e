"""The command line `trimtab`: one module a command, imported only when that command runs.

Does not know: what a command does. Faults of the user's input end as one red line on stderr and
exit code 2; `trimtab --debug COMMAND ...` shows the traceback instead.

Run: `trimtab --help`, or `python -m trimtab --help`.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from .. import __version__
from ..traces.errors import TrimtabError


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command is, and the line that `--help` shows for it without importing it."""

    place: str
    """`module:name` in this room; the name is a function, or a Typer app of sub-commands."""
    help: str


COMMANDS: dict[str, Command] = {
    "demo": Command("demo:demo", "See it work: tune, evaluate and report on the bundled trace."),
    "trace": Command("trace:app", "Import, inspect or make a request trace."),
    "simulate": Command("simulate:simulate", "Run one workload, or explain one request of it."),
    "schema": Command("schema:schema", "Print the schema or an example of a kind of YAML file."),
    "faults": Command("faults:app", "Fit hidden trouble on recorded faults, or show a profile."),
    "calibrate": Command(
        "calibrate:calibrate", "Fit a GPU's latency to profiles or to a recorded run."
    ),
    "model": Command("model:app", "Add, list, show or check model profiles, in versions."),
    "watch": Command("watch:watch", "Watch this machine through probe, aggregator and hub."),
    "demo-live": Command(
        "demo_live:demo_live", "See a policy on real engines, in shadow first, then serving."
    ),
    "fleet": Command("fleet:app", "Start, see and end real llama.cpp replicas on this machine."),
    "serve": Command("serve:serve", "Serve a live fleet: gateway, shield and, if given, a policy."),
    "explain": Command("explain:explain", "Tell why a live request went where it went."),
    "shadow": Command("shadow:app", "See what another scheduler would have done."),
    "sites": Command("sites:app", "Draw sites: fleets with traffic, limits and trouble."),
    "policy": Command("policy:app", "Explain rules, and try them on a recorded trace."),
    "evaluate": Command("evaluate:evaluate", "Compare schedulers on the same unseen workloads."),
    "tune": Command("tune:tune", "Tune a scheduler to a trace and a cluster, or to many sites."),
    "tune-library": Command(
        "tune_library:tune_library", "Make the library: a scorer tuned at each training site."
    ),
    "pretrain": Command(
        "pretrain:pretrain", "Train the graph encoder on states of random simulated fleets."
    ),
    "train": Command("train:train", "Train a policy that moves the tuned scorer's knobs."),
    "experiments": Command(
        "experiments:experiments", "Make the page of experiments from the records of runs."
    ),
    "train-value": Command(
        "train_value:train_value_network", "Fit the value network to rollouts at training sites."
    ),
}


def _load(name: str) -> Any:
    """Import a command's module and return the command.

    Raises:
        TrimtabError: this installation lacks the module.
    """
    module_name, _, attribute = COMMANDS[name].place.partition(":")
    path = f"{__package__}.{module_name}"
    try:
        target = getattr(import_module(path), attribute)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
        msg = f"command '{name}' is not part of this installation: no module {path}"
        raise TrimtabError(msg) from error
    if not isinstance(target, typer.Typer):
        function, target = target, typer.Typer(add_completion=False)
        target.command(name)(function)
    return typer.main.get_command(target)


class LazyGroup(TyperGroup):
    """Shows commands by their table line; imports the one that is run."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Put the imported command in the place of its line in the help."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, name and _load(name), rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; show a fault of the user's input as one line."""
        try:
            return super().invoke(ctx)
        except (TrimtabError, ValueError, OSError) as error:
            if ctx.params["is_debug"]:
                raise
            console = Console(stderr=True, highlight=False)
            console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=LazyGroup,
    help="Trimtab: a reinforcement-learning scheduler for fleets of LLM replicas.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"trimtab {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    is_debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.")
    ] = False,
    is_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Take the options that come before the command."""


def _placeholder() -> None:
    """Stand for a command in the help; `LazyGroup` runs the real one."""


for _name, _command in COMMANDS.items():
    app.command(_name, help=_command.help)(_placeholder)


def main() -> None:
    """Run the command line."""
    app()
