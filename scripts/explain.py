"""Command `trimtab explain`: why a live request went where it went.

Does not know: how decisions are logged.

Run: `trimtab explain req-1a2b3c4d-7 --decisions runs/decisions`.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..runtime.decision_log.explanation import explain_request


def explain(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="As answers say it.")],
    decisions: Annotated[Path, typer.Option(help="Directory of the decision log.")],
    as_json: Annotated[bool, typer.Option("--json", help="All that is known, for machines.")] = (
        False
    ),
) -> None:
    """Tell a request's decision: who ruled, what was seen, what each replica would have cost."""
    explanation = explain_request(decisions, request_id)
    if as_json:
        typer.echo(json.dumps(explanation.as_dict(), default=str, indent=2))
        return
    console = Console(highlight=False)
    for sentence in explanation.sentences():
        console.print(sentence, markup=False, soft_wrap=True)
