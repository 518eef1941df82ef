"""Faults that an engine's process can have: each is there while its context lasts."""

from corpus.inside import cache_faults, model_faults, sampler_faults, second_faults

FAULTS = {
    name: function
    for module in (sampler_faults, model_faults, cache_faults, second_faults)
    for name, function in vars(module).items()
    if hasattr(function, "is_fault")
}
