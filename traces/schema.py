"""Requests as columns: the Arrow schema, and a validated trace with NumPy views of it.

Does not know: files (`store.py`, `sources/`), how load is made (`synthetic.py`), or replicas.
The output length is what happened; whoever schedules a trace must hide it.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from . import columns
from .columns import Adapters, Labels, Limits, Prefix, Sessions
from .validation import check_table

REQUEST_SCHEMA_VERSION = 1
DEFAULT_BLOCK_TOKENS = 64

_LABEL = pa.dictionary(pa.int32(), pa.string())

REQUEST_SCHEMA = pa.schema(
    [
        # seconds from the start of the trace, sorted
        pa.field("arrival_s", pa.float64(), nullable=False),
        pa.field("model", _LABEL, nullable=False),
        pa.field("tenant", _LABEL, nullable=False),
        # 0 is the most urgent class
        pa.field("priority", pa.int8(), nullable=False),
        # requests of one conversation share a number
        pa.field("session", pa.int64()),
        pa.field("input_tokens", pa.int32(), nullable=False),
        pa.field("output_tokens", pa.int32(), nullable=False),
        # one hash a full prompt block: equal means this block and all before it are equal
        pa.field("prefix_blocks", pa.list_(pa.uint64()), nullable=False),
        # limits on time to first token and on time per output token after it
        pa.field("ttft_slo_s", pa.float64()),
        pa.field("tpot_slo_s", pa.float64()),
        # LoRA adapter, null for none; a table without this column has none
        pa.field("adapter", _LABEL),
        # answers sampled together, or beam width; a table without this column has 1
        pa.field("num_sequences", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class TraceSource:
    """Where a trace came from; free text, passed on with every copy."""

    name: str
    licence: str = ""
    citation: str = ""
    url: str = ""


UNNAMED_SOURCE = TraceSource(name="unnamed")


# Without slots: cached_property keeps its result in the instance's dictionary.
@dataclass(frozen=True)
class RequestTrace:
    """Requests in order of arrival, checked at construction.

    NumPy views are read-only. Shapes: N requests, B prefix blocks of all requests together.

    Raises: TraceError when the table breaks the schema or a rule of a column.
    """

    table: pa.Table
    block_tokens: int = DEFAULT_BLOCK_TOKENS
    source: TraceSource = UNNAMED_SOURCE

    def __post_init__(self) -> None:
        table = columns.complete_table(self.table).unify_dictionaries().combine_chunks()
        check_table(table, REQUEST_SCHEMA, self.block_tokens, self.source.name)
        object.__setattr__(self, "table", table)

    @classmethod
    def from_columns(
        cls,
        *,
        arrival_s: npt.ArrayLike,
        input_tokens: npt.ArrayLike,
        output_tokens: npt.ArrayLike,
        block_tokens: int = DEFAULT_BLOCK_TOKENS,
        source: TraceSource = UNNAMED_SOURCE,
        model: Labels = "default",
        tenant: Labels = "default",
        priority: int | npt.ArrayLike = 0,
        session: Sessions = None,
        prefix: Prefix = None,
        ttft_slo_s: Limits = None,
        tpot_slo_s: Limits = None,
        adapter: Adapters = None,
        num_sequences: int | npt.ArrayLike = 1,
    ) -> Self:
        """A trace from columns; one value stands for every row where a column may be one value.

        Shapes: columns [N]; `prefix` is (offsets [N + 1], hashes [B]). NaN and None limits are
        no limit; a None session is no session, a None adapter no adapter.

        Raises: ValueError for columns of unequal length or a wrong type; TraceError as the class.
        """
        arrivals = np.asarray(arrival_s, np.float64)
        num_rows = arrivals.size
        arrays = {
            "arrival_s": pa.array(arrivals),
            "model": columns.label_array(model, num_rows),
            "tenant": columns.label_array(tenant, num_rows),
            "priority": columns.priority_array(priority, num_rows),
            "session": columns.session_array(session, num_rows),
            "input_tokens": columns.whole_array("input_tokens", input_tokens, np.int32),
            "output_tokens": columns.whole_array("output_tokens", output_tokens, np.int32),
            "prefix_blocks": columns.prefix_array(prefix, num_rows),
            "ttft_slo_s": columns.limit_array(ttft_slo_s, num_rows),
            "tpot_slo_s": columns.limit_array(tpot_slo_s, num_rows),
            "adapter": columns.adapter_array(adapter, num_rows),
            "num_sequences": columns.count_array("num_sequences", num_sequences, num_rows),
        }
        for name, array in arrays.items():
            if len(array) != num_rows:
                msg = f"{name} has {len(array)} rows; expected {num_rows} as arrival_s"
                raise ValueError(msg)
        table = pa.Table.from_arrays(list(arrays.values()), schema=REQUEST_SCHEMA)
        return cls(table, block_tokens, source)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def with_columns(self, **arrays: Any) -> "RequestTrace":
        """The same trace with some columns replaced by Arrow arrays of the schema's types."""
        table = self.table
        for name, array in arrays.items():
            index = REQUEST_SCHEMA.get_field_index(name)
            table = table.set_column(index, REQUEST_SCHEMA.field(index), array)
        return RequestTrace(table, self.block_tokens, self.source)

    @property
    def span_s(self) -> float:
        """Seconds from the first to the last arrival; 0 for fewer than two requests."""
        return float(self.arrival_s[-1] - self.arrival_s[0]) if len(self) else 0.0

    @property
    def mean_rate_rps(self) -> float:
        """Requests over the span from first to last arrival; 0 where that span is 0."""
        return len(self) / self.span_s if self.span_s > 0.0 else 0.0

    @cached_property
    def arrival_s(self) -> npt.NDArray[np.float64]:
        """Seconds from the start of the trace, sorted, [N]."""
        return columns.numpy_column(self.table["arrival_s"], np.float64)

    @cached_property
    def input_tokens(self) -> npt.NDArray[np.int32]:
        """Prompt tokens, at least 1, [N]."""
        return columns.numpy_column(self.table["input_tokens"], np.int32)

    @cached_property
    def output_tokens(self) -> npt.NDArray[np.int32]:
        """Generated tokens, at least 1, [N]."""
        return columns.numpy_column(self.table["output_tokens"], np.int32)

    @cached_property
    def priority(self) -> npt.NDArray[np.int8]:
        """Class, 0 the most urgent, [N]."""
        return columns.numpy_column(self.table["priority"], np.int8)

    @cached_property
    def has_session(self) -> npt.NDArray[np.bool_]:
        """Whether the request names a session, [N]."""
        return columns.numpy_column(self.table["session"].is_valid(), np.bool_)

    @cached_property
    def session_ids(self) -> npt.NDArray[np.int64]:
        """Session numbers; a request without one gets its own, above all named ones, [N]."""
        ids = np.array(self.table["session"].fill_null(0).to_numpy(), np.int64)
        is_lone = ~self.has_session
        first_free = int(ids[~is_lone].max()) + 1 if not is_lone.all() else 0
        ids[is_lone] = first_free + np.arange(int(is_lone.sum()))
        ids.flags.writeable = False
        return ids

    @cached_property
    def _prefix(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
        return columns.numpy_prefix(self.table["prefix_blocks"])

    @property
    def prefix_offsets(self) -> npt.NDArray[np.int64]:
        """Request i owns hashes [offsets[i], offsets[i + 1]), [N + 1]."""
        return self._prefix[0]

    @property
    def prefix_block_hashes(self) -> npt.NDArray[np.uint64]:
        """Hashes of prompt blocks, request after request, [B]."""
        return self._prefix[1]

    @cached_property
    def ttft_slo_s(self) -> npt.NDArray[np.float64]:
        """Limit on seconds to the first token, NaN where unset, [N]."""
        return columns.numpy_column(self.table["ttft_slo_s"].fill_null(np.nan), np.float64)

    @cached_property
    def tpot_slo_s(self) -> npt.NDArray[np.float64]:
        """Limit on seconds per output token after the first, NaN where unset, [N]."""
        return columns.numpy_column(self.table["tpot_slo_s"].fill_null(np.nan), np.float64)

    @cached_property
    def num_sequences(self) -> npt.NDArray[np.int32]:
        """Sequences that decode for a request: n, best_of or beam width, at least 1, [N]."""
        return columns.numpy_column(self.table["num_sequences"], np.int32)

    @cached_property
    def _adapters(self) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
        return columns.numpy_optional_labels(self.table["adapter"])

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """LoRA adapters that occur."""
        return self._adapters[0]

    @property
    def adapter_index(self) -> npt.NDArray[np.int32]:
        """Index into `adapter_names` plus 1, 0 for a request without adapter, [N]."""
        return self._adapters[1]

    @cached_property
    def _models(self) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
        return columns.numpy_labels(self.table["model"])

    @property
    def model_names(self) -> tuple[str, ...]:
        """Models that occur."""
        return self._models[0]

    @property
    def model_index(self) -> npt.NDArray[np.int32]:
        """Index into `model_names`, [N]."""
        return self._models[1]

    @cached_property
    def _tenants(self) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
        return columns.numpy_labels(self.table["tenant"])

    @property
    def tenant_names(self) -> tuple[str, ...]:
        """Tenants that occur."""
        return self._tenants[0]

    @property
    def tenant_index(self) -> npt.NDArray[np.int32]:
        """Index into `tenant_names`, [N]."""
        return self._tenants[1]
