"""The durable part: the log, checkpoints and everything else that must survive."""
