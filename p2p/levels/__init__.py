"""Whole levels as a yardstick: what a map file says, the ways through it, and who finishes it."""
