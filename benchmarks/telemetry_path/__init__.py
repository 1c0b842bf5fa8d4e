"""Parts of the telemetry benchmark: frames made ahead, the path, what is measured of it."""
