"""What tracekit starts beside or inside an engine: prompts, a rollout, a sidecar."""
