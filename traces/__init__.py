"""What happened: requests as columns, from import to statistics."""
