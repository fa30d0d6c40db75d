"""The supervised runtime: supervision, agents, control, listeners."""
