"""The recorder: lives inside somebody's vLLM process, so it imports nothing but the standard library, numpy and rpc.

Threads and queues of one recorded engine::

    engine's thread            tracekit-recorder              tracekit-stream and grpc's own
    ───────────────            ─────────────────              ──────────────────────────────
    hooks (vllm.hooks)         Session._run, every 50 ms      Stream._run, one Connection at a time
      │ vllm.events              │ Rows.add: event → rows       │ hello, batches ─► tracekitd
      ▼                          │                              │ ◄─ acks: Window.ack
    Session.append ─► deque ─────┤ 4,096 events                 │ ◄─ commands: Commands.take
      full: counted as lost      ▼                              ▼
                               Stream.put, every 500 ms ─► Window ─► next_unsent
                                 or 8,192 tokens             256 MiB; over 3/4 new requests are shed,
                                                             full: counted as lost

Nobody waits for the column to its right: the engine's thread appends references, and a daemon that is slow or away
costs rows, which are counted, and never the engine's time. A lossless recorder (`pace`) is the other way round.
"""
