"""The trainer's scorer: body, fp32 head, the engine's sampling. Torch; never sees a trace."""
