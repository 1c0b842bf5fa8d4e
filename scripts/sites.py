"""Commands `trimtab sites sample|show`: draw sites, and tell what is at one.

Does not know: how sites are drawn (`..env.sites`).
"""

from pathlib import Path
from typing import Annotated

import typer

from ..env.sites import Split, TraceLibrary, sample_site
from ..env.sites.site_file import load_sites, save_sites, sites_yaml
from ..traces.errors import ConfigError
from .site_text import site_text

app = typer.Typer(
    help="Draw sites: fleets with traffic, limits and trouble, for training and for judging.",
    no_args_is_help=True,
    add_completion=False,
)

_SplitOption = Annotated[
    Split, typer.Option(help="What the sites are for; sites of two splits share nothing.")
]
_TracesOption = Annotated[
    Path | None,
    typer.Option(help="Directory of recorded traces to resample; without it all is synthetic."),
]
_ChangingOption = Annotated[
    bool | None,
    typer.Option("--changing/--steady", help="Sites with regimes, or without; else both kinds."),
]


def _library(directory: Path | None) -> TraceLibrary | None:
    return None if directory is None else TraceLibrary(directory)


@app.command()
def sample(
    *,
    split: _SplitOption = Split.TRAIN,
    count: Annotated[int, typer.Option(min=1, help="How many sites.")] = 10,
    first: Annotated[int, typer.Option(min=0, help="Number of the first.")] = 0,
    traces: _TracesOption = None,
    is_changing: _ChangingOption = None,
    out: Annotated[Path | None, typer.Option(help="YAML file to write; else printed.")] = None,
) -> None:
    """Draw sites and write them as YAML; the same numbers are the same sites every time."""
    library = _library(traces)
    numbers = range(first, first + count)
    sites = [sample_site(split, number, library, is_changing=is_changing) for number in numbers]
    if out is None:
        typer.echo(sites_yaml(sites), nl=False)
        return
    save_sites(out, sites)
    typer.echo(f"wrote {len(sites)} sites to {out}")


@app.command()
def show(
    number: Annotated[int, typer.Argument(min=0, help="Number of the site.")] = 0,
    *,
    split: _SplitOption = Split.TRAIN,
    file: Annotated[
        Path | None, typer.Option(help="Take the site from a file that `sample` wrote.")
    ] = None,
    traces: _TracesOption = None,
    is_changing: _ChangingOption = None,
    has_rate: Annotated[
        bool, typer.Option("--rate/--no-rate", help="Find its capacity: takes a second or so.")
    ] = True,
    episode: Annotated[
        int, typer.Option(min=0, help="Episode of a changing site whose regimes are shown.")
    ] = 0,
) -> None:
    """Show one site: fleet, traffic, limits, load, trouble and regimes."""
    library = _library(traces)
    if file is None:
        site = sample_site(split, number, library, is_changing=is_changing)
    else:
        found = {(one.split, one.number): one for one in load_sites(file)}
        if (split, number) not in found:
            names = ", ".join(one.name for one in found.values())
            msg = f"no site {split}/{number} in '{file}'; there are {names}"
            raise ConfigError(msg)
        site = found[split, number]
    typer.echo(site_text(site, library, has_rate=has_rate, episode=episode))
