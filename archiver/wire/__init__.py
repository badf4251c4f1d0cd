"""Requests on the way out: to recorders and to stores."""
