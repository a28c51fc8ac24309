"""Checkpoints of training runs, in a folder or an object store: found, verified, fetched, read, without a trainer."""
