"""Random augmentation of training images: dataset.augment."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kdrun.config.setting import LARGEST_SIDE, setting

# Settings of Augment that apply to the student only.
LATE = (
    "randaugment",
    "randaugment_magnitude",
    "randaugment_std",
    "erasing",
    "mixup",
    "cutmix",
    "mix_probability",
    "cutmix_share",
)


@dataclass
class Augment:
    """Random augmentation of the training images. RandAugment, erasing and mixing apply to the student only: a
    teacher that kdrun trains is trained without them."""

    crop: str = setting(
        "padded",
        choices=("none", "padded", "resized"),
        help="none, padded (pad by crop_padding, crop the original size) or resized (a random part, enlarged)",
    )
    crop_padding: int = setting(4, low=0, high=LARGEST_SIDE, help="pixels on each side, for crop=padded")
    crop_padding_mode: str = setting(
        "zeros", choices=("zeros", "reflect"), help="the added pixels: black, or the mirrored image"
    )
    resized_scale: list[float] = setting(
        [0.08, 1.0],
        over=0,
        high=1,
        length=2,
        help="smallest and largest share of the image's area that crop=resized takes",
    )
    flip: float = setting(0.5, low=0, high=1, help="probability of a horizontal flip")
    rotation: float = setting(0.0, low=0, high=180, help="largest angle in degrees, either way")
    brightness: float = setting(0.0, low=0, high=10, help="factor drawn from [1 - x, 1 + x]")
    contrast: float = setting(0.0, low=0, high=10, help="factor drawn from [1 - x, 1 + x]")
    saturation: float = setting(0.0, low=0, high=10, help="factor drawn from [1 - x, 1 + x]")
    hue: float = setting(0.0, low=0, high=0.5, help="shift by up to x turns of the colour wheel")
    randaugment: int = setting(0, low=0, high=16, help="operations per image (timm's rand-mM-nN-mstdS-inc1); 0: none")
    randaugment_magnitude: float = setting(9.0, low=0, high=10, help="mean strength of the operations, M, out of 10")
    randaugment_std: float = setting(0.5, low=0, high=10, help="the standard deviation of their strength, S")
    erasing: float = setting(0.0, low=0, high=1, help="probability that a box of the image becomes noise")
    mixup: float = setting(0.0, low=0, high=100, help="alpha of Beta(alpha, alpha) for mixup; 0: off")
    cutmix: float = setting(0.0, low=0, high=100, help="alpha of Beta(alpha, alpha) for CutMix; 0: off")
    mix_probability: float = setting(1.0, low=0, high=1, help="share of images that are mixed")
    cutmix_share: float = setting(0.5, low=0, high=1, help="share of CutMix among these, if both are on")

    @property
    def padding(self) -> int:
        return self.crop_padding if self.crop == "padded" else 0

    @property
    def warps(self) -> bool:
        return self.crop == "resized" or self.rotation > 0

    @property
    def jitters(self) -> bool:
        return max(self.brightness, self.contrast, self.saturation, self.hue) > 0

    @property
    def mixes(self) -> bool:
        """Return True if images, and so their labels, are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def stays_together(self) -> int:
        """Return the number of neighbours in an epoch's order that must stay in one process: pairs if images are
        mixed."""
        return 2 if self.mixes else 1

    @property
    def changes(self) -> bool:
        """Return True if an image may look different from one epoch to the next."""
        moved = self.padding > 0 or self.flip > 0 or self.warps or self.jitters
        return moved or self.randaugment > 0 or self.erasing > 0 or self.mixes

    def same_for_teacher(self, teacher_view: str) -> bool:
        """Return True if each training image looks the same to the teacher in every epoch."""
        return teacher_view in ("clean", "fixed") or not self.changes

    def of_teacher(self, flip: float | None) -> Augment:
        """Return the augmentation for training a teacher. flip: its own flip probability."""
        plain = Augment()
        late = {name: getattr(plain, name) for name in LATE}
        return replace(self, flip=self.flip if flip is None else flip, **late)
