"""What vLLM makes of a temperature."""

from __future__ import annotations

LOWEST_TEMPERATURE = 0.01  # what is above 0 and below this is raised to it
GREEDY_BELOW = 1e-5  # sampled greedily; above 0 only where somebody set it after the parameters were made


def raised(value: float) -> float:
    """Return the temperature that is sampled with where `value` was asked for."""
    return max(value, LOWEST_TEMPERATURE) if value > 0 else value
