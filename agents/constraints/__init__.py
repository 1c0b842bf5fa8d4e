"""Rules of operators and owners as constraints."""
