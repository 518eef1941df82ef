"""Settings that are known to break parity: pure rules over an engine's resolved settings and what it recorded."""
