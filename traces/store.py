"""A trace on disk: a directory of Parquet parts and the manifest that lists them.

The manifest is the truth: a part that it does not list is not there. Every change writes and
syncs its part first and renames the new manifest into place last, so that a crash at any moment
leaves the store as it was. One writer at a time; readers need no lock.

Does not know: where the requests came from, or what is done with them.
"""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .columns import complete_table
from .errors import TraceError
from .schema import REQUEST_SCHEMA, REQUEST_SCHEMA_VERSION, RequestTrace, TraceSource

MANIFEST_NAME = "manifest.json"
_PART_NAME = re.compile(r"part-(\d{5,})\.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePart:
    """One Parquet file of a store."""

    file: str
    rows: int
    sha256: str
    first_arrival_s: float
    last_arrival_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreManifest:
    """What a store holds."""

    schema_version: int
    block_tokens: int
    source: TraceSource
    parts: tuple[StorePart, ...]


def write_store(path: str | Path, trace: RequestTrace, *, overwrite: bool = False) -> None:
    """Write a trace as a new store.

    Raises: TraceError when a store is there and `overwrite` is off, or `path` is a file.
    """
    root = Path(path)
    is_replacing = (root / MANIFEST_NAME).exists()
    if is_replacing and not overwrite:
        msg = (
            f"trace store {str(path)!r} exists; expected a new directory; choose another one, "
            "append to it, or pass overwrite=True"
        )
        raise TraceError(msg)
    if root.exists() and not root.is_dir():
        msg = f"trace store {str(path)!r} is a file; expected a directory or nothing"
        raise TraceError(msg)
    root.mkdir(parents=True, exist_ok=True)
    old_parts = _listed_parts(root) if is_replacing else ()
    taken = [_part_number(file.name) for file in root.iterdir() if _PART_NAME.fullmatch(file.name)]
    part = _write_part(root, max(taken, default=-1) + 1, trace)
    _write_manifest(
        root,
        StoreManifest(
            schema_version=REQUEST_SCHEMA_VERSION,
            block_tokens=trace.block_tokens,
            source=trace.source,
            parts=(part,),
        ),
    )
    for old_part in old_parts:
        (root / old_part.file).unlink(missing_ok=True)


def append_store(path: str | Path, trace: RequestTrace) -> None:
    """Add later requests to a store, atomically.

    Raises: TraceError when a request precedes the store's last one, or when block_tokens or
    source differ from the store's.
    """
    root = Path(path)
    manifest = read_manifest(root)
    last_part = manifest.parts[-1]
    for name, expected, found in (
        ("block_tokens", manifest.block_tokens, trace.block_tokens),
        ("source", manifest.source, trace.source),
    ):
        if found != expected:
            msg = (
                f"trace store {str(path)!r}: {name} of the new requests is {found}; "
                f"expected {expected} as in the store; write them to a store of their own"
            )
            raise TraceError(msg)
    if len(trace) and trace.arrival_s[0] < last_part.last_arrival_s:
        msg = (
            f"trace store {str(path)!r}: arrival_s {trace.arrival_s[0]} is before the store's "
            f"last request ({last_part.last_arrival_s}); append in order of arrival"
        )
        raise TraceError(msg)
    if len(trace):
        part = _write_part(root, _part_number(last_part.file) + 1, trace)
        _write_manifest(root, replace(manifest, parts=(*manifest.parts, part)))


def read_store(path: str | Path) -> RequestTrace:
    """The whole trace of a store, every part checked against its checksum.

    Raises: TraceError naming the store, the file and what differs.
    """
    root = Path(path)
    manifest = read_manifest(root)
    tables = [_read_part(root, part) for part in manifest.parts]
    return RequestTrace(pa.concat_tables(tables), manifest.block_tokens, manifest.source)


def read_manifest(path: str | Path) -> StoreManifest:
    """What a store says that it holds, without reading its parts.

    Raises: TraceError when there is no store, or its manifest is of another version or broken.
    """
    file = Path(path) / MANIFEST_NAME
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = (
            f"trace store {str(path)!r} has no {MANIFEST_NAME}; expected a directory written by "
            "write_store; check the path or import the trace"
        )
        raise TraceError(msg) from None
    except (OSError, ValueError) as error:
        msg = f"trace store {str(path)!r}: cannot read {file.name}: {error}"
        raise TraceError(msg) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != REQUEST_SCHEMA_VERSION:
        msg = (
            f"trace store {str(path)!r} has schema_version {version}; expected "
            f"{REQUEST_SCHEMA_VERSION}; import the trace anew with this Trimtab"
        )
        raise TraceError(msg)
    return _parse_manifest(content, str(path))


def _parse_manifest(content: dict[str, Any], store_name: str) -> StoreManifest:
    try:
        manifest = StoreManifest(
            schema_version=content["schema_version"],
            block_tokens=content["block_tokens"],
            source=TraceSource(**content["source"]),
            parts=tuple(StorePart(**part) for part in content["parts"]),
        )
    except (KeyError, TypeError) as error:
        msg = (
            f"trace store {store_name!r}: {MANIFEST_NAME} lacks or misnames {error}; "
            "restore the file or import the trace anew"
        )
        raise TraceError(msg) from error
    if not manifest.parts:
        msg = f"trace store {store_name!r} lists 0 parts; expected at least 1"
        raise TraceError(msg)
    for part in manifest.parts:
        if not _PART_NAME.fullmatch(part.file):
            msg = (
                f"trace store {store_name!r} lists the part {part.file!r}; "
                "expected a name like part-00000.parquet"
            )
            raise TraceError(msg)
    return manifest


def _listed_parts(root: Path) -> tuple[StorePart, ...]:
    """Parts that may go when the store is replaced; none where the manifest is unreadable."""
    try:
        return read_manifest(root).parts
    except TraceError:
        return ()


def _part_number(file_name: str) -> int:
    return int(file_name.removeprefix("part-").removesuffix(".parquet"))


def _read_part(root: Path, part: StorePart) -> pa.Table:
    try:
        content = (root / part.file).read_bytes()
    except OSError as error:
        msg = (
            f"trace store {str(root)!r}: cannot read {part.file}, which {MANIFEST_NAME} lists: "
            f"{error}; restore the file or import the trace anew"
        )
        raise TraceError(msg) from error
    found = hashlib.sha256(content).hexdigest()
    if found != part.sha256:
        msg = (
            f"trace store {str(root)!r}: {part.file} has sha256 {found}; expected {part.sha256} "
            f"from {MANIFEST_NAME}; the file was changed: restore it or import the trace anew"
        )
        raise TraceError(msg)
    table = pq.read_table(pa.BufferReader(content), partitioning=None)
    return complete_table(table).select(REQUEST_SCHEMA.names).cast(REQUEST_SCHEMA)


def _write_part(root: Path, number: int, trace: RequestTrace) -> StorePart:
    name = f"part-{number:05d}.parquet"
    sink = pa.BufferOutputStream()
    # Block hashes are random numbers: a dictionary of them only costs time.
    pq.write_table(
        trace.table,
        sink,
        compression="zstd",
        use_dictionary=["model", "tenant", "priority", "adapter", "num_sequences"],
    )
    content = sink.getvalue().to_pybytes()
    _write_synced(root / name, content)
    return StorePart(
        file=name,
        rows=len(trace),
        sha256=hashlib.sha256(content).hexdigest(),
        first_arrival_s=float(trace.arrival_s[0]) if len(trace) else 0.0,
        last_arrival_s=float(trace.arrival_s[-1]) if len(trace) else 0.0,
    )


def _write_manifest(root: Path, manifest: StoreManifest) -> None:
    content = json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"
    _write_synced(root / MANIFEST_NAME, content.encode())


def _write_synced(path: Path, content: bytes) -> None:
    """Write to a temporary name, force it to disk, rename, force the rename to disk."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
