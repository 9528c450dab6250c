"""Portable reward tuning: a reward trained once through a frozen base, used with any other."""
