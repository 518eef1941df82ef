"""Inside vLLM: what all generations share, and a folder for each, where every difference of versions stands."""
