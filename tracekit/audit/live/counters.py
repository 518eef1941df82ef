"""What vLLM counts of itself, by engine, under one name each whatever the version calls it.

Names: vllm/engine/metrics.py (V0), vllm/v1/metrics/loggers.py (V1). They are probed: what is not there is not offered.
"""

from __future__ import annotations

from tracekit.audit.live.exposition import parse
from tracekit.errors import MetricsError

GENERATION = "generation tokens"
PROMPT = "prompt tokens"
CACHED = "cached prompt tokens"
PREEMPTIONS = "preemptions"
FINISHED = "finished: "  # and the reason
QUERIES = "prefix cache queries"
HITS = "prefix cache hits"
IN_FLIGHT = "requests in flight"

QUANTITIES = (GENERATION, PROMPT, CACHED, PREEMPTIONS, QUERIES, HITS, IN_FLIGHT)

_NAMES = {
    "vllm:generation_tokens_total": GENERATION,
    "vllm:prompt_tokens_total": PROMPT,
    "vllm:prompt_tokens_cached_total": CACHED,
    "vllm:num_preemptions_total": PREEMPTIONS,
    "vllm:prefix_cache_queries_total": QUERIES,
    "vllm:prefix_cache_hits_total": HITS,
    "vllm:num_requests_running": IN_FLIGHT,
    "vllm:num_requests_waiting": IN_FLIGHT,
}
_BY_REASON = "vllm:request_success_total"

Counters = dict[str, int]  # quantity -> value


def read_counters(text: str) -> dict[str, Counters]:
    """Return the counters of each engine behind a metrics endpoint, by its label `engine` (V0 has none: "").

    Raises:
        MetricsError: it is not an exposition, or not one of vLLM.
    """
    engines: dict[str, dict[str, int]] = {}
    for sample in parse(text):
        quantity = _NAMES.get(sample.name)
        if sample.name == _BY_REASON:
            # 0.8.5 calls the label otherwise than V1
            quantity = FINISHED + sample.labels.get("finished_reason", "unknown")
        if quantity is None:
            continue
        if sample.value != sample.value or abs(sample.value) == float("inf"):
            raise MetricsError(f"{sample.name} is {sample.value}, which counts nothing")
        counters = engines.setdefault(sample.labels.get("engine", ""), {})
        # several series where there are several names of a model
        counters[quantity] = counters.get(quantity, 0) + round(sample.value)
    if not engines:
        raise MetricsError("there are no counters of vLLM in these metrics (is the server started without stats?)")
    return engines
