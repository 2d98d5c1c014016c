"""Words on a command line become a checked configuration; no torch."""
