"""Derived test sets: the same images, with one property changed."""
