"""What can be seen of a runtime and its machine: status, live view, logs, doctor."""
