"""Requests on the way out: origin guard, time-outs on progress, politeness, status → error."""
