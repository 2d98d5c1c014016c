"""What is on disk: names, identities, directories, ledgers; no torch."""
