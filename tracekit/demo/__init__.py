"""The demo model and the story that `tracekit demo` tells."""
