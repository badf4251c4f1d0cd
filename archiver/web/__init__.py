"""What a person or a program sees over HTTP: pages, playback, the API, and who did what there."""
