"""What a trainer really used for the rollouts, read from the dump that its framework writes."""
