"""The V0 engine (vLLM 0.8.5)."""
