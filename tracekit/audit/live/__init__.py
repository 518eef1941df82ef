"""Compares a trace with the engine's own counters, which know nothing of the recorder."""
