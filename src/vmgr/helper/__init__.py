"""The helper: the per-user daemon. Control plane only."""
