"""Measured claims: each module prints a table and, with --json, one object on its last line."""
