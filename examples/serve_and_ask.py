"""`vllm serve` with an OpenAI client beside it.

tracekit record --engine v1 -o trace.arrow -- python examples/serve_and_ask.py MODEL
"""

import socket
import subprocess
import sys
import time
import urllib.request

from openai import OpenAI

if __name__ == "__main__":
    model = sys.argv[1]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    argv = ["vllm", "serve", model, "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "policy"]
    server = subprocess.Popen([*argv, "--max-model-len", "512", "--enforce-eager"])
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                if server.poll() is not None:
                    sys.exit(f"vllm serve ended with {server.returncode}")
                time.sleep(0.5)
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        answer = client.chat.completions.create(
            model="policy",
            messages=[{"role": "user", "content": "What is 2+2?"}],
            temperature=0.7,
            max_tokens=24,
            logprobs=True,
        )
        print(answer.choices[0].message.content)
        stream = client.completions.create(
            model="policy", prompt="The capital of France is", max_tokens=16, logprobs=0, stream=True
        )
        print("".join(chunk.choices[0].text for chunk in stream if chunk.choices))
    finally:
        server.terminate()
        server.wait(60)
