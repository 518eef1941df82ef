"""tracekitd: the sidecar that takes what recorders send, writes it to the spool, and seals traces."""
