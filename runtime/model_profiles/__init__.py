"""Upload of model profiles over HTTP: checked, versioned, and in use at once."""
