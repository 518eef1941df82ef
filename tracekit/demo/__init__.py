"""The models that a name stands for, and the story that `tracekit demo` tells."""
