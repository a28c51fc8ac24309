"""Processes that a command starts: workers, servers, games; and that none of them stays behind."""
