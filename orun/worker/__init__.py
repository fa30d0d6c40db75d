"""What runs inside a child: the agent's interface, its state, requests, recovery and the forkserver."""
