"""Derived test images."""
