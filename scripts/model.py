"""Commands `trimtab model ...`: models in versions, what they come to, and their upload server.

Does not know: what a model file may hold, or how versions are kept.
"""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..env.model_file import find_model, load_model, read_model
from ..env.model_profile import MODELS
from ..env.model_store import STORE_VARIABLE, ModelStore, Outcome, default_store, is_shadowed
from ..env.model_version import split_key
from ..runtime.model_profiles.app import DEFAULT_HOST, DEFAULT_PORT, serve
from ..traces.errors import ConfigError
from .model_table import figure_lines, fit_table

# The variable that holds the token of the upload server.
TOKEN_VARIABLE = "TRIMTAB_MODEL_TOKEN"

app = typer.Typer(
    help="Add, list, show or check model profiles, in versions.",
    no_args_is_help=True,
    add_completion=False,
)

Store = Annotated[
    Path | None,
    typer.Option(
        "--store", help=f"Directory of the models; else ${STORE_VARIABLE}, else the user's own."
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="A model, or a model file.")]


def _store(directory: Path | None) -> ModelStore:
    return default_store() if directory is None else ModelStore(directory)


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Model files.")],
) -> None:
    """Check model files; every fault is named with its line."""
    for file in files:
        profile = read_model(file)
        typer.echo(f"{file}: {profile.key}, no faults")
        for line in figure_lines(profile):
            typer.echo(f"  {line}")


@app.command()
def add(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A model file, YAML or JSON.")],
    store: Store = None,
) -> None:
    """Store a model file as a new version; one that is there is never changed."""
    read_model(file)  # for its faults with the file's name
    done = _store(store).add(file.read_bytes(), is_json=file.suffix == ".json")
    if done.profile is None or done.faults:
        msg = f"model file '{file}' was not added: {'; '.join(map(str, done.faults))}"
        raise ConfigError(msg)
    said = "added" if done.outcome is Outcome.CREATED else "there already, the same"
    typer.echo(f"{done.profile.key}: {said}")
    if is_shadowed(done.profile):
        typer.echo(
            f"the bare name {done.profile.name!r} stays the model that comes with the package; "
            f"say {done.profile.key!r} for this one"
        )


@app.command("list")
def list_models(store: Store = None) -> None:
    """List stored models with their versions, then those that come with the package."""
    kept = _store(store)
    for name in kept.names():
        typer.echo(f"{name}: {', '.join(kept.versions(name))}")
    typer.echo(f"with the package: {', '.join(MODELS)}")


@app.command()
def show(name: Name, store: Store = None) -> None:
    """Show what a model comes to: weights, KV, FLOPs, and the GPUs on which it fits."""
    found = None if Path(name).is_file() else find_model(name, _store(store))
    profile = load_model(name) if found is None else found
    typer.echo(profile.key)
    for line in figure_lines(profile):
        typer.echo(f"  {line}")
    Console(highlight=False).print(fit_table(profile))


@app.command()
def history(
    name: Annotated[str, typer.Argument(help="A stored model.")], store: Store = None
) -> None:
    """Show the versions of a model, and what each changed."""
    for stored in _store(store).history(split_key(name)[0]):
        typer.echo(f"{stored.profile.key}, stored {stored.stored_at:%Y-%m-%d %H:%M} UTC")
        for line in stored.changes:
            typer.echo(f"  {line}")


@app.command()
def diff(older: Name, newer: Name, store: Store = None) -> None:
    """Show what differs between two stored models."""
    lines = _store(store).difference(older, newer)
    typer.echo("\n".join(lines) if lines else "no difference")


@app.command("serve")
def serve_uploads(
    store: Store = None,
    host: Annotated[str, typer.Option(help="Loopback address to listen on.")] = DEFAULT_HOST,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = DEFAULT_PORT,
) -> None:
    """Serve the upload API; clients show the token that $TRIMTAB_MODEL_TOKEN holds."""
    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        msg = f"${TOKEN_VARIABLE} is not set; put a token there: openssl rand -hex 24"
        raise ConfigError(msg)
    serve(_store(store), token=token, host=host, port=port)
