"""Command `trimtab schema`: the JSON Schema, an example or the documentation of a kind of file.

The feature registry of the state is listed by the same command.

Does not know: what the files or the features mean.
"""

import json
from typing import Annotated

import typer

from ..env.file_kinds import example_path, file_kind, schema_of
from .file_docs import markdown_page, markdown_section
from .file_kind_table import KINDS
from .state_docs import state_page, state_records

# Not a kind of file: the features of a fleet's state.
STATE = "state"


def schema(
    *,
    kind: Annotated[
        str | None,
        typer.Argument(metavar="KIND", help=f"One of: {', '.join((*KINDS, STATE))}."),
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print a complete, commented example instead.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the documentation instead; without KIND, all.")
    ] = False,
) -> None:
    """Print the JSON Schema of a kind of YAML file, or the state's features; else the kinds."""
    if example and markdown:
        msg = "--example and --markdown cannot both be printed; leave one out"
        raise ValueError(msg)
    if kind is None:
        if example:
            msg = f"--example needs a kind of file; name one of {', '.join(KINDS)}"
            raise ValueError(msg)
        typer.echo(markdown_page() if markdown else _kinds(), nl=not markdown)
        return
    if kind == STATE:
        if example:
            msg = "--example needs a kind of file, 'state' is none; use --markdown"
            raise ValueError(msg)
        records = json.dumps(state_records(), indent=2)
        typer.echo(state_page() if markdown else records, nl=not markdown)
        return
    file_kind(kind, KINDS)
    if example:
        typer.echo(example_path(kind, KINDS).read_text(encoding="utf-8"), nl=False)
    elif markdown:
        typer.echo(markdown_section(kind), nl=False)
    else:
        typer.echo(json.dumps(schema_of(kind, KINDS), indent=2))


def _kinds() -> str:
    return "\n".join(f"{name}: {kind.what}" for name, kind in KINDS.items())
