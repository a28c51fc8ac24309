"""The Hub: verified downloads, archives of recordings, and which of them hold a game."""
