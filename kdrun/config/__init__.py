"""Configuration: from command-line arguments to a checked configuration. No torch."""
