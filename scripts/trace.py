"""Commands `trimtab trace`: import a recording, show a trace in figures, make a synthetic one.

Does not know: fleets or policies; needs neither torch nor the simulator.
"""

import json
import shlex
from dataclasses import asdict, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ..traces.errors import TraceError
from ..traces.schema import RequestTrace
from ..traces.sources import IMPORTERS, BadRow
from ..traces.statistics import TraceStatistics, statistics
from ..traces.store import MANIFEST_NAME, write_store
from ..traces.synthetic import SyntheticConfig, generate
from .recorded import open_trace, shortness

# Formats whose columns, time unit and order are the user's own.
_TABULAR_FORMATS = ("csv", "jsonl")
_NUM_BAD_ROWS_SHOWN = 5
_NUM_CHARACTERS_SHOWN = 80
_SYNTHETIC = SyntheticConfig(num_requests=100_000)

app = typer.Typer(
    help="Import, inspect or make a request trace.", no_args_is_help=True, add_completion=False
)


@app.command("import")
def import_trace(
    *,
    format_name: Annotated[
        str, typer.Argument(metavar="FORMAT", help=f"One of {', '.join(IMPORTERS)}.")
    ],
    file: Annotated[Path, typer.Argument(help="The recording, plain or .gz.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Directory of the new store; by default FILE's name with .trace."),
    ] = None,
    columns: Annotated[
        str,
        typer.Option(
            help="csv, jsonl: column of each field, as arrival_s=ts,input_tokens=prompt,... "
            "A field left out is read from a column of its own name."
        ),
    ] = "",
    time_unit: Annotated[
        str, typer.Option(help="csv, jsonl: unit of the arrival column: s, ms, us or iso.")
    ] = "s",
    sort: Annotated[
        bool, typer.Option("--sort", help="csv, jsonl: sort the rows by arrival.")
    ] = False,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that cannot be read.")
    ] = False,
    name: Annotated[str, typer.Option(help="Name of the source; by default FILE's name.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the recording.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a store in OUT.")] = False,
) -> None:
    """Read a recording of requests into a trace store."""
    place = out or Path(f"{file.name.removesuffix('.gz').rsplit('.', 1)[0]}.trace")
    _check_place(place, overwrite=overwrite)
    options = _tabular_options(format_name, columns, time_unit, is_sorted=sort)
    result = _importer(format_name)(file, skip_bad_rows=skip_bad_rows, **options)
    trace = _named(result.trace, name, licence)
    write_store(place, trace, overwrite=overwrite)
    console = Console(highlight=False)
    _print_bad_rows(console, result.bad_rows)
    _print_written(console, trace, place)


@app.command("info")
def info(
    *,
    path: Annotated[
        str, typer.Argument(help="A trace store, or a bundled trace: azure-conv, azure-code.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Show what a trace looks like in figures."""
    trace = open_trace(path)
    figures = statistics(trace)
    if as_json:
        typer.echo(json.dumps({"source": asdict(trace.source), **asdict(figures)}, indent=2))
        return
    Console(highlight=False).print(_info_table(path, trace, figures))


@app.command("synth")
def synth(
    *,
    out: Annotated[Path, typer.Option(help="Directory of the new store.")],
    requests: Annotated[
        int | None, typer.Option(help="Length in requests; 100000 if no --span is given.")
    ] = None,
    span: Annotated[float | None, typer.Option(help="Length in seconds.")] = None,
    rate: Annotated[float, typer.Option(help="Mean requests per second.")] = _SYNTHETIC.rate_rps,
    seed: Annotated[
        int, typer.Option(help="The same seed and options give the same trace.")
    ] = _SYNTHETIC.seed,
    input_mean: Annotated[
        float, typer.Option(help="Mean tokens of a first prompt.")
    ] = _SYNTHETIC.input_mean_tokens,
    output_mean: Annotated[
        float, typer.Option(help="Mean tokens of an answer.")
    ] = _SYNTHETIC.output_mean_tokens,
    burst_cv: Annotated[
        float, typer.Option(help="Burstiness of each second's count; 0 is Poisson.")
    ] = _SYNTHETIC.burst_count_cv,
    follow_up: Annotated[
        float, typer.Option(help="Share of requests that continue a conversation.")
    ] = _SYNTHETIC.follow_up_frac,
    shared_prompt: Annotated[
        float, typer.Option(help="Share of conversations with a shared system prompt.")
    ] = _SYNTHETIC.shared_prompt_frac,
    urgent: Annotated[
        float, typer.Option(help="Share of conversations of priority 0.")
    ] = _SYNTHETIC.urgent_frac,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a store in OUT.")] = False,
) -> None:
    """Make a synthetic chat trace: bursts, conversations, shared system prompts."""
    _check_place(out, overwrite=overwrite)
    if requests is None and span is None:
        requests = _SYNTHETIC.num_requests
    config = SyntheticConfig(
        num_requests=requests,
        span_s=span,
        rate_rps=rate,
        seed=seed,
        input_mean_tokens=input_mean,
        output_mean_tokens=output_mean,
        burst_count_cv=burst_cv,
        follow_up_frac=follow_up,
        shared_prompt_frac=shared_prompt,
        urgent_frac=urgent,
    )
    trace = generate(config)
    write_store(out, trace, overwrite=overwrite)
    _print_written(Console(highlight=False), trace, out)


def _importer(format_name: str) -> Any:
    if format_name not in IMPORTERS:
        near = get_close_matches(format_name, IMPORTERS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        msg = f"unknown format '{format_name}'; expected one of {', '.join(IMPORTERS)}.{hint}"
        raise ValueError(msg)
    return IMPORTERS[format_name]


def _tabular_options(
    format_name: str, columns: str, time_unit: str, *, is_sorted: bool
) -> dict[str, Any]:
    """Options that only formats with the user's own columns take."""
    if format_name in _TABULAR_FORMATS:
        return {"columns": _column_map(columns), "time_unit": time_unit, "sort": is_sorted}
    for option, is_given in (
        ("--columns", bool(columns)),
        ("--time-unit", time_unit != "s"),
        ("--sort", is_sorted),
    ):
        if is_given and format_name in IMPORTERS:
            msg = (
                f"{option} is for the formats {' and '.join(_TABULAR_FORMATS)}; format "
                f"'{format_name}' says itself what its columns are; leave {option} out"
            )
            raise ValueError(msg)
    return {}


def _column_map(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    for field, equals, column in pairs:
        if not (field.strip() and equals and column.strip()):
            msg = (
                f"--columns has '{field}{equals}{column}'; expected field=column, as in "
                "arrival_s=ts,input_tokens=prompt"
            )
            raise ValueError(msg)
    return {field.strip(): column.strip() for field, _, column in pairs}


def _check_place(place: Path, *, overwrite: bool) -> None:
    """Refuse before the work what `write_store` would refuse after it, in the user's terms."""
    if (place / MANIFEST_NAME).exists() and not overwrite:
        msg = f"trace store '{place}' exists; pass --overwrite to replace it, or another --out"
        raise TraceError(msg)


def _named(trace: RequestTrace, name: str, licence: str) -> RequestTrace:
    changes = {key: value for key, value in (("name", name), ("licence", licence)) if value}
    return RequestTrace(trace.table, trace.block_tokens, replace(trace.source, **changes))


def _print_bad_rows(console: Console, bad_rows: tuple[BadRow, ...]) -> None:
    if not bad_rows:
        return
    console.print(f"left out {len(bad_rows)} bad rows:", style="yellow")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("line", justify="right")
    table.add_column("reason")
    table.add_column("value")
    for row in bad_rows[:_NUM_BAD_ROWS_SHOWN]:
        table.add_row(str(row.line), row.reason, row.value[:_NUM_CHARACTERS_SHOWN])
    console.print(table)
    if len(bad_rows) > _NUM_BAD_ROWS_SHOWN:
        console.print(f"... and {len(bad_rows) - _NUM_BAD_ROWS_SHOWN} more")


def _print_written(console: Console, trace: RequestTrace, place: Path) -> None:
    console.print(
        f"wrote {place}: {len(trace)} requests over {trace.span_s:.1f} s, "
        f"{trace.mean_rate_rps:.2f} requests/s",
        soft_wrap=True,
    )
    too_short = shortness(trace)
    if too_short:
        console.print(f"note: this trace {too_short}", style="yellow", soft_wrap=True)
        return
    command = f"trimtab evaluate --trace {shlex.quote(str(place))}"
    console.print(f"next: {command}", soft_wrap=True, markup=False)


def _info_table(path: str, trace: RequestTrace, figures: TraceStatistics) -> Table:
    table = Table(
        title=f"trace {path}", box=box.SIMPLE_HEAD, show_header=False, title_justify="left"
    )
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for label, text in _info_rows(trace, figures):
        table.add_row(label, text)
    return table


def _info_rows(trace: RequestTrace, figures: TraceStatistics) -> list[tuple[str, str]]:
    source = trace.source
    rows = [
        ("source", source.name),
        ("licence", source.licence or "not stated"),
        ("citation", source.citation),
        ("url", source.url),
        ("requests", f"{figures.rows:,}"),
        ("span", f"{figures.span_s:,.1f} s"),
        ("rate", f"mean {figures.mean_rate_rps:.2f} requests/s, busiest 10 s "
                 f"{figures.peak_10s_rps:.2f} requests/s"),
        ("gap variation", _or_dash(figures.cv_interarrival) + "  (1 for Poisson)"),
        ("dispersion, 10 s", _or_dash(figures.dispersion_10s) + "  (1 for Poisson)"),
    ]  # fmt: skip
    for label, tokens in (("input", figures.input_tokens), ("output", figures.output_tokens)):
        text = f"mean {tokens.mean:.0f}, P50 {tokens.p50:.0f}, P95 {tokens.p95:.0f}"
        rows.append((f"{label} tokens", f"{text}, P99 {tokens.p99:.0f}, max {tokens.max}"))
    hit_frac = figures.prefix_hit_frac
    rows += [
        ("prefix hits", "no prefix blocks" if hit_frac is None else f"{hit_frac:.1%} of blocks, "
                        "with a cache without limit"),
        ("sessions", f"{figures.num_sessions:,}"),
        ("tenants", _shares(figures.tenant_fracs)),
        ("models", _shares(figures.model_fracs)),
        ("priorities", _shares(figures.priority_fracs)),
    ]  # fmt: skip
    return [(label, text) for label, text in rows if text]


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _shares(fracs: dict[Any, float], num_shown: int = 5) -> str:
    largest = sorted(fracs.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {frac:.1%}" for name, frac in largest[:num_shown])
    rest = len(largest) - num_shown
    return f"{shown} and {rest} more" if rest > 0 else shown
