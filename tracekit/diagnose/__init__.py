"""Numbers in, a verdict out: noise, onsets, causes. Never torch, never a trace."""
