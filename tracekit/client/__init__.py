"""What a trainer says of its rollouts and its weights, without ever waiting for anybody.

Example:
    from tracekit.client import Client

    client = Client("unix:/run/user/1000/tracekit/d.sock")
    client.annotate(request_id, train_step=120, group="prompt-7", reward=1.0, advantage=0.4, old_logprob=old)
    client.mark_weights("step-121", checkpoint="checkpoints/step-121")
"""

from __future__ import annotations

from tracekit.client.client import Client as Client
