"""Measurements: each one command, each writing JSON, a table and plots."""
