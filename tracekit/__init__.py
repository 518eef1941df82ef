"""tracekit: record what an inference engine really did, replay it, and name the first diverging token."""

__version__ = "0.1.0"
