"""Commands `trimtab faults fit|show`: hidden trouble from recorded faults, and what profiles hold.

Does not know: how trouble is drawn.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from ..env.fault_file import bundled_fault_names, load_faults
from ..env.fault_fitting import fit_server_faults, fit_spot
from ..env.simulator.faults import FaultConfig
from ..traces.errors import ConfigError

app = typer.Typer(
    help="Fit hidden trouble on recorded faults, or show a profile.",
    no_args_is_help=True,
    add_completion=False,
)


class _Lines(yaml.SafeDumper):
    """Writes lists in one line."""


_Lines.add_representer(
    tuple, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, True)
)


def _as_yaml(content: dict[str, Any]) -> str:
    return yaml.dump(content, Dumper=_Lines, sort_keys=False, width=96)


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(help="A bundled profile's name, or a YAML file; none lists the names.")
    ] = "",
) -> None:
    """Show what a fault profile sets; what it leaves off is not shown."""
    if not name:
        typer.echo("\n".join(bundled_fault_names()))
        return
    config, off = asdict(load_faults(name)), asdict(FaultConfig())
    changed = {key: value for key, value in config.items() if value != off[key]}
    typer.echo(_as_yaml(changed) if changed else "no trouble")


@app.command()
def fit(
    servers: Annotated[
        Path | None,
        typer.Option(help="CSV of server faults: event_time_days, node, event_type, ..."),
    ] = None,
    num_servers: Annotated[int, typer.Option(min=1, help="Servers of that fleet.")] = 400,
    spot: Annotated[
        Path | None, typer.Option(help="CSV of spot availability: runs of nodes_up by zone.")
    ] = None,
    acceleration: Annotated[
        float, typer.Option(min=1e-3, help="How much faster than real time losses come and go.")
    ] = 1.0,
    out: Annotated[Path | None, typer.Option(help="Fault file to write; else printed.")] = None,
) -> None:
    """Fit losses of servers and of spot capacity, and write them as a fault file."""
    if servers is None and spot is None:
        msg = "nothing to fit; give --servers, --spot or both"
        raise ConfigError(msg)
    content: dict[str, Any] = {"name": out.stem if out else "fitted", "acceleration": acceleration}
    if servers is not None:
        found = fit_server_faults(servers, num_servers=num_servers)
        kept = ("per_hour", "burst_frac", "burst_gap_s", "down_quantiles_s")
        content["server_loss"] = {key: _rounded(getattr(found, key)) for key in kept}
        typer.echo(f"{found.num_faults} server faults", err=True)
    if spot is not None:
        runs = fit_spot(spot)
        content["spot"] = {
            "server_frac": 1.0,
            "up_quantiles_s": runs.up_quantiles_s,
            "down_quantiles_s": runs.down_quantiles_s,
        }
        typer.echo(f"{runs.num_series} spot series, {runs.drops_per_day:.2f} drops/day", err=True)
    if out is None:
        typer.echo(_as_yaml(content))
    else:
        out.write_text(_as_yaml(content), encoding="utf-8")
        typer.echo(f"wrote {out}")


def _rounded(value: Any) -> Any:
    return float(f"{value:.3g}") if isinstance(value, float) else value
