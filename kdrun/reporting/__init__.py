"""Finished runs become tables, comparisons and pages; nothing is trained or measured."""
