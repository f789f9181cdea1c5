"""Benchmarks: each prints a card for people and one last line of JSON for machines."""
