"""What engines say of their being recorded, and how a job is made attachable, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def engine_line(state: Mapping[str, Any]) -> str:
    """Return the line about one engine."""
    about = f"{state.get('host')} pid {state.get('pid')}  {state.get('kind')} {state.get('engine_version')}"
    return f"{about}  {state.get('model')}  {_what(state)}"


def trouble(state: Mapping[str, Any]) -> str:
    """Return why an engine did not do what it was told; empty where it did."""
    if state.get("state") == "gone":
        return "its process has ended"
    if not state.get("answered"):
        return "it does not answer"
    return str(state.get("error") or state.get("failed") or "")


def _what(state: Mapping[str, Any]) -> str:
    now = state.get("state")
    if now in ("recording", "stopping"):
        lost = sum((state.get("lost") or {}).values())
        rows = sum((state.get("produced") or {}).values())
        counted = f", {rows} rows, {lost} lost" if "produced" in state else ""
        waits = ", stops at its next step" if now == "stopping" else ""
        failed = f", but {state['failed']}" if state.get("failed") else ""
        return f"recorded to {state.get('daemon')} from step {state.get('since_step')} on{counted}{waits}{failed}"
    return "starts at its next step" if now == "starting" else str(now)


def environment_lines(wheel: str, folder: str) -> str:
    """Return the two variables of a job that can be attached to, as its launchers want them.

    Args:
        wheel: the recorder.
        folder: where orders are left.
    """
    pairs = {"PYTHONPATH": wheel, "TRACEKIT_ATTACH": folder}
    told = ", ".join(f'"{name}": "{value}"' for name, value in pairs.items())
    listed = ",".join(f"{name}={value}" for name, value in pairs.items())
    kubernetes = "\n".join(f'  - {{name: {name}, value: "{value}"}}' for name, value in pairs.items())
    return f"""# a shell; where PYTHONPATH or VLLM_PLUGINS is set already, add to it (VLLM_PLUGINS: tracekit)
export PYTHONPATH="{wheel}${{PYTHONPATH:+:$PYTHONPATH}}"
export TRACEKIT_ATTACH="{folder}"

# Ray
ray.init(runtime_env={{"env_vars": {{{told}}}}})

# Slurm
sbatch --export=ALL,{listed} job.sh

# Kubernetes: both are paths of a volume that the engine's container mounts
env:
{kubernetes}
"""
