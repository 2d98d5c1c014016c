"""Run directories on disk: names, identities, contents and ledgers. No torch."""
