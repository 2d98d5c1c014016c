"""Derived test sets."""
