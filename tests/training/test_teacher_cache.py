"""The teacher's outputs, kept where it sees the same images in every epoch: the same students, with fewer passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdrun.config.augment import Augment
from kdrun.data.decode import untracked
from kdrun.data.resident import ResidentEval, ResidentTrain
from kdrun.data.splits import ArraySet
from kdrun.models.features import Tap
from kdrun.models.zoo import create_model
from kdrun.structures import Outputs
from kdrun.training import teacher_cache as cache_module
from kdrun.training.network import Network
from kdrun.training.precision import Numerics
from kdrun.training.teacher import Teacher
from kdrun.training.teacher_cache import TeacherCache, fill
from tests.conftest import NATIVE_BF16, TINY

PLAIN = ["dataset.augment.crop=none", "dataset.augment.flip=0"]
BF16 = ["precision=bf16"] if NATIVE_BF16 else []
STILL = Augment(crop="none", flip=0)
SHIFTED = Augment(crop="padded", crop_padding=2, flip=0.5)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which the first test that needs a teacher trains it for all."""
    return tmp_path_factory.mktemp("teachers")


def place_for(name: str, tmp_path: Path, teachers: Path) -> str:
    """Return the argument for an output folder of its own with the shared teachers."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "teachers").symlink_to(teachers)
    return f"output_root={tmp_path / name}"


def students(outputs: Path) -> dict[str, dict[str, torch.Tensor]]:
    """method -> the student's weights, of the runs below `outputs`."""
    found = {path.parent.parent.name: load_file(path) for path in outputs.glob("runs/*/*/*/*/student.safetensors")}
    assert found
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def skip_if_nothing_is_kept(out: str) -> None:
    """Skip the test where a run says that an image's outputs depend on its position in the batch."""
    if "position in the batch: the teacher computes them in every epoch" in out:
        pytest.skip("rows of this CPU's matrix products depend on their place: kdrun keeps no outputs here")


def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the frozen teacher's batches, as they come."""
    seen: list[int] = []
    forward = Tap.forward

    def counted(self: Tap, image: torch.Tensor) -> Outputs:
        if len(image) > 2 and not any(parameter.requires_grad for parameter in self.parameters()):  # 2: a rehearsal
            seen.append(len(image))
        return forward(self, image)

    monkeypatch.setattr(Tap, "forward", counted)
    return seen


@pytest.mark.parametrize(
    "words",
    [
        ["method=kd", *PLAIN],
        ["method=kd", "teacher_view=clean"],
        ["method=kd", "teacher_view=fixed"],
        ["method=kd", "teacher_view=independent", *PLAIN],
        ["method=kd", "precision=bf16", *PLAIN],
        ["method=hint_regressor", *BF16, *PLAIN],
        ["method=at", *PLAIN],
        ["method=reviewkd", *BF16, *PLAIN],
        ["method=srd", *PLAIN],
        ["method=fitnet", "method.hint_epochs=1", *PLAIN],
        ["method=kd", "teacher=vit_cifar_tiny", *BF16, *PLAIN],
        ["method=capd", "teacher=vit_cifar_tiny", *PLAIN],
    ],
    ids=" ".join,
)
def test_a_student_is_the_same_bit_for_bit(kdrun, tmp_path, teachers, monkeypatch, words):
    """Three batches of 32, 32 and 8 an epoch; kept, they are seen once, and computed anew in each of three epochs. The
    last one is filled up. On a machine whose rows do not stand alone nothing is kept, which the run says."""
    seen = passes(monkeypatch)
    trained = []
    for kept in ("true", "false"):
        seen.clear()
        words_of_both = [*TINY, "epochs=3", *words, place_for(kept, tmp_path, teachers)]
        code, out, err = kdrun("train", *words_of_both, f"teacher_cache={kept}")
        assert (code, err) == (0, "")
        assert ("teacher outputs of 72 images, the same in every epoch" in out) is (kept == "true")
        skip_if_nothing_is_kept(out)
        trained.append((students(tmp_path / kept)[words[0].removeprefix("method=")], len(seen)))
    (kept_weights, few), (weights, many) = trained
    assert same(kept_weights, weights)
    assert few == 3 + 1  # and one that looks at the rows' places
    assert many >= 9  # and those of a preparation


@pytest.mark.parametrize(
    "words",
    [
        ["method=kd"],
        ["method=kd", "epochs=1", *PLAIN],
        ["method=kd", "dataset.augment.rotation=5", *PLAIN],
        ["method=sskd", "method.prepare_epochs=1", *PLAIN],
    ],
    ids=" ".join,
)
def test_nothing_is_kept_where_nothing_repeats(kdrun, tmp_path, teachers, words):
    """Augmented images, a single epoch, a method that shows the teacher its own rotations."""
    code, out, err = kdrun("train", *TINY, "epochs=2", *words, place_for("out", tmp_path, teachers))
    assert (code, err) == (0, "")
    assert "teacher outputs" not in out


def test_what_does_not_fit_is_computed_in_every_epoch(kdrun, tmp_path, teachers, monkeypatch):
    words = ("train", *TINY, "epochs=2", "method=kd", *PLAIN)
    kdrun(*words, place_for("kept", tmp_path, teachers))
    monkeypatch.setattr(cache_module, "MOST", 72 * 4 * 4 - 1)  # one byte less than 72 samples of four float32 logits
    code, out, err = kdrun(*words, place_for("large", tmp_path, teachers))
    assert (code, err) == (0, "")
    skip_if_nothing_is_kept(out)
    assert "they do not fit into memory: the teacher computes them in every epoch" in out
    assert same(students(tmp_path / "kept")["kd"], students(tmp_path / "large")["kd"])


def test_lanes_share_what_is_kept(kdrun, tmp_path, teachers):
    """One pass for lanes that read different maps, and the weights of runs alone."""
    methods = ("kd", "hint_regressor", "at")
    alone, together = place_for("a", tmp_path, teachers), place_for("b", tmp_path, teachers)
    for method in methods:
        assert kdrun("train", *TINY, *PLAIN, "epochs=2", f"method={method}", alone)[0] == 0
    code, out, _ = kdrun(
        "train",
        "-m",
        *TINY,
        *PLAIN,
        "epochs=2",
        f"method={','.join(methods)}",
        "launcher.processes=0",
        together,
    )
    assert code == 0
    assert out.count("teacher outputs of 72 images") <= 1
    one, other = students(tmp_path / "a"), students(tmp_path / "b")
    assert sorted(one) == sorted(other) == sorted(methods)
    assert all(same(one[method], other[method]) for method in methods)


def test_only_the_switched_off_one_has_a_name_of_its_own(kdrun, outputs):
    """Old runs keep their digests."""
    for value in ("true", "false"):
        assert kdrun("train", *TINY, "epochs=1", "method=kd", f"teacher_cache={value}")[0] == 0
    assert kdrun("train", *TINY, "epochs=1", "method=kd")[0] == 0
    assert len(list(outputs.glob("runs/*/*/*/*/result.json"))) == 2


def loader(augment: Augment, view: str = "same", device: str = "cpu") -> ResidentTrain:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (21, 16, 16, 3), generator=generator, dtype=torch.uint8).numpy()
    return ResidentTrain(
        ArraySet(pixels, (torch.arange(21) % 4).numpy()),
        batch_size=8,
        seed=0,
        augment=augment,
        stats=([0.5] * 3, [0.25] * 3),
        teacher_view=view,
        device=torch.device(device),
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "needs"), [("resnet8", {"maps", "preact", "pooled"}), ("vit_cifar_tiny", {"tokens", "attention", "maps"})]
)
@pytest.mark.parametrize(("augment", "view"), [(STILL, "same"), (SHIFTED, "clean"), (SHIFTED, "fixed")])
def test_kept_outputs_are_those_of_a_pass(name, needs, precision, augment, view):
    """In value, type, shape and memory layout, for the samples of every batch of an epoch."""
    torch.manual_seed(0)
    network = Network(
        Tap(create_model(name, num_classes=4, image_size=16), 16, frozenset(needs)),
        Numerics("cpu", precision, False, 1, False),
        8,
    )
    teacher, batches = Teacher(network), loader(augment, view)
    cache, problem = fill(network, batches, untracked)
    if "position in the batch" in problem:
        pytest.skip("rows of this CPU's matrix products depend on their place: kdrun keeps no outputs here")
    assert cache is not None
    for batch in batches.epoch(5):
        found, wanted = cache(batch.index), teacher(batch.teacher_image)
        ours, theirs = (cache_module.tensors_of(one) for one in (found, wanted))
        assert len(ours) == len(theirs) > 1
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other)
            assert one.dtype == other.dtype == torch.float32
            assert [n for n, size in zip(one.stride(), one.shape, strict=True) if size > 1] == [
                n for n, size in zip(other.stride(), other.shape, strict=True) if size > 1
            ] or other.stride()[0] != other[0].numel()  # a slice of a larger tensor has gaps, what is kept has none


def test_layout_of_a_sample_is_kept():
    maps = torch.randn(5, 3, 4, 2).to(memory_format=torch.channels_last)
    heads = torch.randn(5, 6, 2, 7).transpose(1, 2)
    cache = TeacherCache(Outputs(torch.randn(5, 4), maps=(maps,), attention=(heads, heads, heads)), 5)
    cache.put(0, Outputs(torch.zeros(5, 4), maps=(maps,), attention=(heads, heads, heads)))
    out = cache(torch.tensor([4, 0]))
    assert out.maps is not None
    assert out.attention is not None
    assert out.maps[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out.maps[0], maps[[4, 0]])
    assert out.attention[1].stride() == heads.stride()
    assert torch.equal(out.attention[1], heads[[4, 0]])
    assert cache.size == 4 * (5 * 4 + maps.numel() + 3 * heads.numel())


@pytest.mark.parametrize(
    "augment",
    [
        Augment(),
        SHIFTED,
        Augment(crop="none", flip=0.5),
        Augment(crop="none", flip=0, rotation=1),
        Augment(crop="none", flip=0, hue=0.1),
        Augment(crop="resized", flip=0),
    ],
)
def test_augmentation_is_seen(augment):
    assert not loader(augment).teacher_sees_the_same
    assert not loader(augment, "independent").teacher_sees_the_same
    assert loader(augment, "clean").teacher_sees_the_same


@pytest.mark.parametrize("view", ["same", "clean", "independent"])
def test_without_augmentation_all_views_are_one(view):
    assert loader(STILL, view).teacher_sees_the_same
    assert loader(Augment(crop="padded", crop_padding=0, flip=0), view).teacher_sees_the_same


class Imprecise(torch.nn.Module):
    """A classifier whose rows depend on their batch as some CPUs' matrix products do, but by more than a last bit."""

    def __init__(self, depends_on: str):
        super().__init__()
        self.depends_on, self.fc = depends_on, torch.nn.Linear(3, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(image)) if self.depends_on == "place" else torch.full((len(image),), len(image))
        return self.fc(image.mean(dim=(2, 3))) + 1e-3 * rows[:, None]


@pytest.mark.parametrize("depends_on", ["size", "place"])
def test_rows_that_depend_on_their_batch(depends_on):
    """On its size: every batch has the same one. On the place in it: nothing is kept."""
    network = Network(Tap(Imprecise(depends_on), 16), Numerics("cpu", "fp32", False, 1, False), 8)
    teacher, batches = Teacher(network), loader(STILL)
    cache, problem = fill(network, batches, untracked)
    if depends_on == "place":
        assert (cache, problem) == (
            None,
            "on this machine, the last bits of an image's outputs depend on its position in the batch",
        )
        return
    assert cache is not None
    for batch in batches.epoch(0):
        assert torch.equal(cache(batch.index).logits, teacher(batch.teacher_image).logits)


def test_evaluation_does_not_depend_on_what_is_left_for_the_last_batch():
    """The same logits for an image in the last small batch as in a full one; also of `answer` and `examine`."""
    from kdrun.evaluation.examine import Subject, examine
    from kdrun.evaluation.predictions import answer
    from kdrun.training.loop import evaluate

    network = Network(Tap(Imprecise("size"), 16), Numerics("cpu", "fp32", False, 1, False), 8)
    subject, found = Subject(network), []
    for count in (16, 21):
        pixels = loader(STILL).images.store.view(21, 16, 16, 3)[:count].numpy()
        part = ResidentEval(
            ArraySet(pixels, (torch.arange(count) % 4).numpy()),
            batch_size=8,
            device=torch.device("cpu"),
            stats=([0.5] * 3, [0.25] * 3),
        )
        found.append(answer(subject, part).log_probabilities)
        scores = examine(subject, None, part, 4, lambda steps: steps).scores
        assert evaluate(network.tap.model, network.tap.prepare, part, network.numerics)["nll"] == scores["nll"]
    assert (found[0] == found[1][:16]).all()
    biased = network.tap.model(torch.zeros(8, 3, 16, 16)) - network.tap.model(torch.zeros(5, 3, 16, 16))[:1]
    assert (biased.abs() > 1e-3).all()  # the network does tell batches of 8 and 5 apart
