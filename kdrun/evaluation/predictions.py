"""What a network answered on a test set, image by image, kept beside its run: all that bias and closeness need."""

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
    """log_probabilities: float16 [N, K], in the order of the test set; predicted: int64 [N], of the logits themselves,
    since 16 bits make equals of neighbours; labels: int64 [N]; textures: of a cue conflict, the class that gave the
    texture, int64 [N] (labels are the shape's), else None."""

    log_probabilities: np.ndarray
    predicted: np.ndarray
    labels: np.ndarray
    textures: np.ndarray | None = None

    @property
    def right(self) -> np.ndarray:
        """bool [N]."""
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        """Percent."""
        return 100 * float(self.right.mean())


def answer(subject: Subject, loader: EvalLoader, textures: np.ndarray | None = None) -> Answers:
    """Every image of `loader` once, in its order."""
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
    """identity: of the test set, the weights and the numerics; who reads must name the same."""
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
    """None where there are none, where they are damaged, or of another identity: they are then measured again."""
    try:
        with np.load(place, allow_pickle=False) as found:
            if bytes(found["identity"]).decode() != json.dumps(identity, sort_keys=True):
                return None
            textures = found.get("textures")
            return Answers(found["log_probabilities"], found["predicted"], found["labels"], textures)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, *DAMAGED_ARCHIVE):
        return None
