"""An X display as Recap sees Windows: a window's pixels are grabbed, keys and mouse are real input events."""
