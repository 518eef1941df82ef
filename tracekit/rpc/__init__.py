"""The wire between recorders, daemon and clients, both ends."""
