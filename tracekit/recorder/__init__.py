"""The recorder: lives inside somebody's vLLM process, so it imports nothing but the standard library, numpy and rpc."""
