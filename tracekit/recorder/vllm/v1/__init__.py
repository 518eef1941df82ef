"""The V1 engine (vLLM 0.18 to 0.32)."""
