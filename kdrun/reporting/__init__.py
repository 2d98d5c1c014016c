"""Reports on finished runs: tables, comparisons and pages. Nothing is trained or measured here."""
