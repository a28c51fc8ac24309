"""Gymnasium's interface to games without a window and to programs in one; `registry.make_env` opens them."""
