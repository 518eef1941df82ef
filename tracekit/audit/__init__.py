"""A trace against itself, its settings, its clients and the engine's own counters."""
