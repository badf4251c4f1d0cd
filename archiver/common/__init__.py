"""What many rooms need: log, clock, words."""
