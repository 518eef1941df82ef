"""Proves a trace against itself: every check is a pure function over one engine's rows."""
