"""The Arrow file: written, sealed, read, and what is missing from it."""
