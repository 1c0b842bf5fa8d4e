"""OpenTelemetry spans of live requests; an extra, `trimtab[otel]`.

Does not know: how requests are placed.
"""
