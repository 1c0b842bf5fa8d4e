"""What rules touch in a trace, as a table.

Does not know: how it is counted.
"""

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..agents.constraints.reach import PolicyReach, RuleReach

_COLUMNS = (
    "requests",
    "tokens",
    "candidates\nreduced",
    "replicas\nleft",
    "over\nbudget",
    "refused",
)
# Tenants without a rule that are named in the notes.
_NUM_NAMES = 5


def reach_table(reach: PolicyReach) -> Group:
    """Return what each rule touches, and who finds no replica at all."""
    table = Table(
        title="counted in the recording", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    table.add_column("rule", vertical="bottom", overflow="fold")
    for name in _COLUMNS:
        table.add_column(name, justify="right", vertical="bottom", no_wrap=True)
    for rule in reach.rules:
        table.add_row(f"{rule.section.removesuffix('s')} {rule.name}", *_cells(rule))
    total = (f"{reach.num_requests:,}", f"{reach.num_tokens:,}", "", "")
    table.add_row(
        "whole trace", *total, f"{reach.num_over_budget:,}", f"{reach.num_nowhere:,}", style="bold"
    )
    return Group(table, *(Text(line) for line in _notes(reach)))


def _cells(rule: RuleReach) -> tuple[str, ...]:
    left = f"{rule.fewest_replicas} to {rule.most_replicas}"
    if rule.fewest_replicas == rule.most_replicas:
        left = "-" if rule.fewest_replicas is None else str(rule.fewest_replicas)
    return (
        f"{rule.num_requests:,}",
        f"{rule.num_tokens:,}",
        f"{rule.num_reduced:,}",
        left,
        f"{rule.num_over_budget:,}",
        f"{rule.num_nowhere:,}",
    )


def _notes(reach: PolicyReach) -> list[str]:
    lines = [*reach.refusals]
    unknown = reach.unknown_tenants
    if unknown:
        more = f" and {len(unknown) - _NUM_NAMES} more" if len(unknown) > _NUM_NAMES else ""
        lines.append(f"tenants without a rule: {', '.join(unknown[:_NUM_NAMES])}{more}")
    return lines
