"""Circuit breakers in a running fleet: rules read again when they change, alarms sent to people."""
