"""Engine environments: a Python of their own with one version of vLLM and the recorder in it."""
