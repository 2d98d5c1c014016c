"""kdrun: a config-driven experiment runner for knowledge distillation of image classifiers."""

__version__ = "0.1.0"
