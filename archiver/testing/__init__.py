"""Contract suites that a source or store must pass; public, so that others can certify theirs."""
