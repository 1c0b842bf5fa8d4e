"""Readers that turn public profiles and recorded runs into measured iterations."""
