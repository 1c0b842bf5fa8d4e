"""Import of the Azure LLM inference trace 2023: arrivals and token counts of two services.

Columns: TIMESTAMP (wall clock, 100 ns digits), ContextTokens, GeneratedTokens. The trace has no
sessions and no prefixes; `conversations.assign_sessions` can overlay some.

Source: Azure/AzurePublicDataset, data/AzureLLMInferenceTrace_{conv,code}.csv.
"""

from pathlib import Path

from ..errors import TraceError
from ..schema import TraceSource
from .importing import (
    NANOSECONDS_PER_S,
    ImportedRow,
    ImportResult,
    RowFault,
    build_result,
    check_columns,
    csv_rows,
    iso_to_ns,
    open_text,
    parse_rows,
    whole_number,
)

AZURE_SOURCE = TraceSource(
    name="Azure LLM inference trace 2023",
    licence="CC BY 4.0",
    citation="Patel et al., Splitwise: Efficient Generative LLM Inference Using Phase Splitting, "
    "ISCA 2024",
    url="https://github.com/Azure/AzurePublicDataset",
)

_COLUMNS = {
    "arrival_s": "TIMESTAMP",
    "input_tokens": "ContextTokens",
    "output_tokens": "GeneratedTokens",
}


def read_azure(
    path: str | Path,
    *,
    model: str = "default",
    tenant: str = "default",
    skip_bad_rows: bool = False,
) -> ImportResult:
    """Read an Azure LLM 2023 file, .csv or .csv.gz, every request of one model and tenant.

    Raises: TraceError for a missing column or, unless `skip_bad_rows`, a malformed row.
    """
    with open_text(path) as text:
        rows = csv_rows(text)
        try:
            _, header = next(rows)
        except StopIteration:
            msg = f"trace {str(path)!r} is empty; expected a header line"
            raise TraceError(msg) from None
        check_columns(path, _COLUMNS, header)
        places = [header.index(column) for column in _COLUMNS.values()]

        def parse(cells: list[str]) -> ImportedRow:
            if len(cells) <= max(places):
                problem = f"has {len(cells)} cells; expected {len(header)}"
                raise RowFault(",".join(cells), "row", problem)
            time, input_tokens, output_tokens = (cells[place] for place in places)
            return ImportedRow(
                time=iso_to_ns(time, "TIMESTAMP"),
                input_tokens=whole_number(input_tokens, "ContextTokens"),
                output_tokens=whole_number(output_tokens, "GeneratedTokens"),
                model=model,
                tenant=tenant,
            )

        parsed = parse_rows(path, rows, parse, skip_bad_rows=skip_bad_rows)
    return build_result(
        parsed, source=AZURE_SOURCE, time_column="TIMESTAMP", units_per_s=NANOSECONDS_PER_S
    )
