"""Users' networks whose weights, or whose second pass, give other results than the network that was trained."""

from __future__ import annotations

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from kdrun.models.first_pass import Candidate, Traits, try_out
from tests.models.small_networks import CLASSES, Small


def tried(model: nn.Module) -> Traits:
    return try_out(Candidate(model, "student", "nets:Net", 16, CLASSES), True)


class RunningMean(Small):
    """A network that subtracts a running mean of its features, kept as `keep` says."""

    def __init__(self, keep: str):
        super().__init__()
        self.keep = keep
        if keep == "attribute":
            self.mean = torch.zeros(6)
        else:
            self.register_buffer("mean", torch.zeros(6), persistent=keep == "persistent")

    def features(self, x: Tensor) -> Tensor:
        found = super().features(x)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * found.detach().mean(0)
        return found - self.mean


def test_what_training_moves_must_be_in_the_state_dict():
    assert tried(RunningMean("persistent")) == Traits()
    for keep in ("attribute", "buffer that is not persistent"):
        model = RunningMean(keep)
        traits = tried(model)
        assert "does not hold, so its saved weights would give other results" in traits.untrainable
        assert not traits.notes  # it can be evaluated


class Cached(Small):
    """A network that computes a table at its first pass, and counts its passes."""

    def __init__(self):
        super().__init__()
        self.table, self.passes = None, 0

    def features(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.table is None:
            self.table = torch.linspace(0, 1, 6)
        return super().features(x) + self.table


def test_what_is_computed_anew_is_no_state():
    assert tried(Cached()) == Traits()


class Listed(Small):
    """A network with layers in containers that PyTorch does not see, and references to layers that it does."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(3, 3, 1))
        self.layers = {"first": [nn.Conv2d(3, 3, 1), nn.ReLU()]}
        self.blocks.scales = [nn.Parameter(torch.ones(1))]
        self.tapped = [self.conv1, nn.ReLU()]
        self._hidden = [nn.Conv2d(3, 3, 1)]

    def features(self, x: Tensor) -> Tensor:
        return super().features(self.layers["first"][0](self.blocks(x)) * self.blocks.scales[0])


def test_layers_in_plain_containers_are_named():
    (note,) = tried(Listed()).notes
    assert "the layers in layers, blocks.scales are neither trained nor saved" in note


def test_containers_that_hold_themselves_or_fail_are_none_of_layers():
    model = Small()
    model.settings = OmegaConf.create({"depth": "???"})
    model.cyclic = [1]
    model.cyclic.append(model.cyclic)
    assert tried(model) == Traits()


class Noisy(Small):
    """A network with noise in evaluation too."""

    def features(self, x: Tensor) -> Tensor:
        return super().features(x + 0.1 * torch.randn_like(x))


def test_randomness_in_evaluation_is_said_and_no_fault_of_the_memory_layout():
    traits = tried(Noisy())
    assert traits.channels_last
    (note,) = traits.notes
    assert "is random in evaluation" in note


class Ends(Small):
    """A network that ends in `evaluated`, in training in `trained`."""

    def __init__(self, evaluated, trained):
        super().__init__()
        self.ends = {False: evaluated, True: trained}

    def forward(self, x: Tensor) -> Tensor:
        return self.ends[self.training](super().forward(x))


def same(logits: Tensor) -> Tensor:
    return logits


def softmax(logits: Tensor) -> Tensor:
    return logits.softmax(1)


def test_probabilities_are_no_logits():
    for evaluated, trained, mode in ((softmax, softmax, "evaluation"), (softmax, same, "evaluation")):
        (note,) = tried(Ends(evaluated, trained)).notes
        assert f"returns probabilities in {mode}" in note
    traits = tried(Ends(same, softmax))
    assert not traits.notes
    assert "returns probabilities in training mode" in traits.training_notes[0]
    for plain in (same, torch.sigmoid, nn.LogSoftmax(1), torch.zeros_like):
        assert tried(Ends(plain, plain)) == Traits()


def test_one_image_has_logits_of_one_row():
    model = Ends(torch.squeeze, torch.squeeze)
    assert tried(model) == Traits()
    for count in (1, 3):
        for training in (False, True):
            assert model.train(training)(torch.rand(count, 3, 16, 16)).shape == (count, CLASSES)
