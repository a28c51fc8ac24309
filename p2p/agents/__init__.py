"""What plays: a policy in this process or behind a socket, and agents to compare it with."""
