"""Predictions of a network on a test set, image by image, stored with its run: the basis of bias and closeness
measures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdrun.files import DAMAGED_ARCHIVE, write_atomically

if TYPE_CHECKING:
    from kdrun.evaluation.examine import Subject
    from kdrun.training.loop import EvalLoader


@dataclass(frozen=True)
class Answers:
    """Predictions of a network. log_probabilities: float16 [N, K], in the order of the test set; predicted: int64
    [N], from the logits themselves, since close values become equal in 16 bits; labels: int64 [N]; textures: for a
    cue conflict, the class of the texture, int64 [N] (labels are the shape's), else None."""

    log_probabilities: np.ndarray
    predicted: np.ndarray
    labels: np.ndarray
    textures: np.ndarray | None = None

    @property
    def right(self) -> np.ndarray:
        """Return which predictions are correct, bool [N]."""
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        """Return the accuracy in percent."""
        return 100 * float(self.right.mean())


def answer(subject: Subject, loader: EvalLoader, textures: np.ndarray | None = None) -> Answers:
    """Predict every image of `loader` once, in its order."""
    import torch

    from kdrun.structures import filled
    from kdrun.training.meters import ranked

    with torch.inference_mode():
        found = [
            (subject.logits(filled(image, loader.batch_size))[: len(label)].cpu(), label.cpu())
            for image, label in loader.batches()
        ]
    logits, labels = (torch.cat(part) for part in zip(*found, strict=True))
    log_probabilities = logits.log_softmax(dim=1).half().numpy()
    return Answers(log_probabilities, ranked(logits)[:, 0].numpy(), labels.numpy(), textures)


def write_answers(place: Path, answers: Answers, identity: dict[str, Any]) -> None:
    """Write predictions. identity: of the test set, the weights and the numerics; a reader must give the same one."""
    arrays = {
        "log_probabilities": answers.log_probabilities.astype(np.float16),
        "labels": answers.labels,
        "predicted": answers.predicted.astype(np.int64),
        "identity": np.frombuffer(json.dumps(identity, sort_keys=True).encode(), dtype=np.uint8),
    }
    if answers.textures is not None:
        arrays["textures"] = answers.textures
    write_atomically(place, lambda file: np.savez_compressed(file, **arrays))


def read_answers(place: Path, identity: dict[str, Any]) -> Answers | None:
    """Return stored predictions; None if there are none, or if they are damaged or have another identity: they are
    then measured again."""
    try:
        with np.load(place, allow_pickle=False) as found:
            if bytes(found["identity"]).decode() != json.dumps(identity, sort_keys=True):
                return None
            textures = found.get("textures")
            return Answers(found["log_probabilities"], found["predicted"], found["labels"], textures)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, *DAMAGED_ARCHIVE):
        return None
