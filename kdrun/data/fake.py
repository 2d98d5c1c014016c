"""Synthetic images for smoke tests: each class is a faint fixed pattern under noise, so that a network can learn it."""

from __future__ import annotations

import numpy as np

from kdrun.data.splits import ArraySet


def load(num_samples: int, num_classes: int, image_size: int, seed: int) -> ArraySet:
    """Return images [num_samples, image_size, image_size, 3] uint8 with balanced labels, a function of the
    arguments."""
    patterns = np.random.default_rng(0).normal(0, 24, (num_classes, image_size, image_size, 3))
    generator = np.random.default_rng(seed)
    labels = np.arange(num_samples, dtype=np.int64) % num_classes
    noise = generator.normal(128, 48, (num_samples, image_size, image_size, 3))
    return ArraySet(np.clip(noise + patterns[labels], 0, 255).astype(np.uint8), labels)
