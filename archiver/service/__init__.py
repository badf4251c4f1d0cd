"""The daemon and what watches it."""
