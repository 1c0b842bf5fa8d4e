"""Every error that Trimtab raises on purpose, in one tree.

    TrimtabError
    |-- TraceError             a trace file, row or store is not what it should be
    |-- ConfigError            a cluster, knob or column-map file has a wrong key or value
    |-- BundleError            a policy bundle cannot be read or does not fit this code
    |-- SimulationError        the simulator was asked for something it cannot do
    |-- MissingExtraError      an optional package is not installed
    |-- AdminError             an admin port cannot be reached, or refuses (runtime/admin/client.py)
    |-- EngineError            an engine cannot or will not (runtime/engines/engine_error.py)
    |-- FrameError             a telemetry frame is refused (runtime/telemetry/frames.py)
    |-- RequestFault           a live request cannot be served as it is (runtime/understanding)
    `-- ProbeUnavailableError  a probe's source is not there (runtime/telemetry/probes/probe.py)

Wrong arguments to a function are plain `ValueError`. A message says what is wrong, the value,
what was expected and what to do.
"""


class TrimtabError(Exception):
    """Base of all errors that Trimtab raises on purpose."""


class TraceError(TrimtabError):
    """A trace file, one of its rows, or a trace store is not what it should be."""


class ConfigError(TrimtabError):
    """A configuration file has a wrong key or value."""


class BundleError(TrimtabError):
    """A policy bundle cannot be read or does not fit this code."""


class SimulationError(TrimtabError):
    """The simulator was asked for something that it cannot do."""


class MissingExtraError(TrimtabError):
    """An optional package is needed and not installed."""
