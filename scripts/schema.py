"""Command `trimtab schema`: the JSON Schema, an example or the documentation of a kind of file.

Does not know: what the files mean.
"""

import json
from typing import Annotated

import typer

from ..env.file_kinds import FILE_KINDS, example_path, file_kind, schema_of
from .file_docs import markdown_page, markdown_section


def schema(
    *,
    kind: Annotated[
        str | None, typer.Argument(metavar="KIND", help=f"One of: {', '.join(FILE_KINDS)}.")
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print a complete, commented example instead.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the documentation instead; without KIND, all.")
    ] = False,
) -> None:
    """Print the JSON Schema of a kind of YAML file; without KIND, which kinds there are."""
    if example and markdown:
        msg = "--example and --markdown cannot both be printed; leave one out"
        raise ValueError(msg)
    if kind is None:
        if example:
            msg = f"--example needs a kind of file; name one of {', '.join(FILE_KINDS)}"
            raise ValueError(msg)
        typer.echo(markdown_page() if markdown else _kinds(), nl=not markdown)
        return
    file_kind(kind)
    if example:
        typer.echo(example_path(kind).read_text(encoding="utf-8"), nl=False)
    elif markdown:
        typer.echo(markdown_section(kind), nl=False)
    else:
        typer.echo(json.dumps(schema_of(kind), indent=2))


def _kinds() -> str:
    return "\n".join(f"{name}: {kind.what}" for name, kind in FILE_KINDS.items())
