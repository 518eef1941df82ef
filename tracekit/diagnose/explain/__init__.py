"""Detectors: one small file each, of one cause or of a few that are told apart together."""
