"""Importers: one module for each foreign trace format."""
