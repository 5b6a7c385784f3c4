"""Measures of stylizations, and the protocols of both papers. May train; nothing below knows it."""
