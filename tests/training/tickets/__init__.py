"""Tests of trained masks over seeded random weights."""
