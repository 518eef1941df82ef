"""One adapter a generation of vLLM; every version difference stands in one of them."""
