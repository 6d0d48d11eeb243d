"""Multi-armed bandits, and reference players to compare with."""
