"""What the daemon serves by HTTP: its health and its metrics."""
