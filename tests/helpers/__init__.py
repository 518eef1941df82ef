"""What tests share: makers of traces, weights and runs, and ways to start real processes."""
