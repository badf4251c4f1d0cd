"""What several recorders' modules need."""
