"""Augmentations: what they do to pixels, labels, masks and boxes, and that the same seed does it again."""

import io
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from synthgen.augmentations import (
    ADAINF_REPLICATION,
    RandomFieldAffine,
    RandomFieldColor,
    Recorded,
    ResizeMix,
    adainf_augmentation,
)
from synthgen.augmentations.fields import random_fields
from synthgen.augmentations.recorded import REACH
from synthgen.augmentations.replaying import OPERATIONS
from synthgen.errors import FolderError, RecipeError, SynthgenError

SHARD = ROOT / "shards" / "emoji-real" / "train" / "00000000.tar"


def members(suffix: str, count: int, shard: Path = SHARD) -> list[torch.Tensor]:
    """The first images of the real set, or their masks: (3 or 1, 64, 64), uint8."""
    found = []
    with tarfile.open(shard) as tar:
        for member in tar:
            if member.name.partition(".")[2] == suffix and len(found) < count:
                image = Image.open(io.BytesIO(tar.extractfile(member).read()))  # type: ignore[union-attr]
                pixels = torch.from_numpy(np.array(image))
                found.append(pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None])
    return found


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    return members("jpg", 6)


def seeded(seed: int, act: object, *arguments: object) -> object:
    torch.manual_seed(seed)
    return act(*arguments)  # type: ignore[operator]


@pytest.mark.parametrize("seed", range(8))
def test_a_smaller_image_weighs_what_it_covers(seed: int) -> None:
    values = torch.arange(5)
    plain = values.view(5, 1, 1, 1).expand(5, 3, 40, 60).float()
    mixed, labels = seeded(seed, ResizeMix(7), plain, values)  # type: ignore[misc]
    assert labels.shape == (5, 7)
    assert labels.dtype == torch.float32
    assert labels.sum(1).tolist() == pytest.approx([1] * 5)
    for own in range(5):
        inside = ((mixed[own, 0] - own).abs() > 0.5).nonzero()
        others = set(mixed[own, 0].round().int().flatten().tolist()) - {own}
        assert len(others) <= 1
        part = len(inside) / (40 * 60)
        assert float(labels[own, own]) == pytest.approx(1 - part, abs=1e-6)
        if others:
            [other] = others
            assert float(labels[own, other]) == pytest.approx(part, abs=1e-6)
            high, wide = (inside.amax(0) - inside.amin(0) + 1).tolist()
            assert high * wide == len(inside)  # one rectangle
            assert 0.1 - 1 / 40 <= high / 40 <= 0.8 + 1 / 40
            assert high / 40 == pytest.approx(wide / 60, abs=0.02)


def test_the_whole_of_the_other_image_is_there(images: list[torch.Tensor]) -> None:
    batch, labels = torch.stack(images), torch.arange(6)
    mix = ResizeMix(6, alpha=(0.5, 0.5))
    mixed, soft = seeded(1, mix, (batch, labels))  # type: ignore[misc]
    small = functional.resize(batch, [32, 32], antialias=True)
    found = 0
    for own in range(6):
        other = int(soft[own].argsort()[-2]) if soft[own].count_nonzero() > 1 else own
        places = [(y, x) for y in range(33) for x in range(33)]
        found += any(torch.equal(mixed[own, :, y : y + 32, x : x + 32], small[other]) for y, x in places)
    assert found == 6
    again, soft_again = seeded(1, mix, batch, labels)  # type: ignore[misc]
    assert torch.equal(mixed, again)
    assert torch.equal(soft, soft_again)
    assert not torch.equal(mixed, seeded(2, mix, batch, labels)[0])  # type: ignore[index]


def test_it_goes_with_torchvision_s_own(images: list[torch.Tensor]) -> None:
    """As one of a choice, of labels that are mixed already too."""
    batch = torch.stack(images).float() / 255
    choice = v2.RandomChoice([v2.MixUp(num_classes=6), v2.CutMix(num_classes=6), ResizeMix(6)])
    kinds = set()
    for seed in range(12):
        mixed, soft = seeded(seed, choice, batch, torch.arange(6))  # type: ignore[misc]
        assert mixed.shape == batch.shape
        assert soft.sum(1).tolist() == pytest.approx([1] * 6)
        _, twice, extra = seeded(seed, ResizeMix(6), mixed, soft, "more")  # type: ignore[misc]
        assert twice.sum(1).tolist() == pytest.approx([1] * 6)
        assert extra == "more"
        kinds.add(round(float((mixed[0] == batch[0]).float().mean()), 1))
    assert len(kinds) > 2
    with pytest.raises(SynthgenError, match=r"labels from -1 to 4; class ids from 0 to num_classes - 1 = 5"):
        ResizeMix(6)(batch, torch.arange(6) - 1)
    with pytest.raises(SynthgenError, match=r"alpha \(0.5, 1.2\)"):
        ResizeMix(6, alpha=(0.5, 1.2))


def test_fields_are_gaussian_and_their_spectrum_is_a_power_of_the_wave_number() -> None:
    torch.manual_seed(0)
    fields = random_fields(600, 48, 64, 4.0)
    assert fields.shape == (600, 48, 64)
    assert float(fields.mean()) == pytest.approx(0, abs=0.05)
    assert float(fields.var(0).mean()) == pytest.approx(1, abs=0.08)
    one = fields[:, 20, 30]
    assert float((one.abs() < 1).float().mean()) == pytest.approx(0.683, abs=0.05)
    assert float(fields.mean((1, 2)).std()) > 0.4  # each has a mean of its own, as a global parameter
    assert float(random_fields(200, 128, 96, 4.0).var(0).mean()) == pytest.approx(1, abs=0.12)  # interpolated
    slopes = {}
    for slope in (2.0, 4.0):
        fields = random_fields(300, 64, 64, slope)
        steps = [float((fields[:, :, lag:] - fields[:, :, :-lag]).square().mean()) for lag in (2, 8)]
        slopes[slope] = math.log(steps[1] / steps[0]) / math.log(4)
    # structure functions: a logarithm at slope 2, nearly lag ** 2 at slope 4
    assert slopes[2.0] < 0.6 < 1.5 < slopes[4.0] < 2.0


@pytest.mark.parametrize("make", [RandomFieldColor, RandomFieldAffine])
def test_a_seed_gives_the_same_picture(make: type[v2.Transform], images: list[torch.Tensor]) -> None:
    transform, image = make(), images[0]
    before = image.clone()
    made = seeded(1, transform, image)
    assert made.dtype == torch.uint8  # type: ignore[attr-defined]
    assert torch.equal(made, seeded(1, transform, image))  # type: ignore[arg-type]
    assert not torch.equal(made, seeded(2, transform, image))  # type: ignore[arg-type]
    assert torch.equal(image, before)
    as_float = seeded(1, transform, image.float() / 255)
    assert torch.allclose(made.float(), as_float * 255, atol=1.01)  # type: ignore[attr-defined, operator]
    batch = seeded(1, transform, torch.stack([image, image]))
    assert torch.equal(batch[0], made)  # type: ignore[index, arg-type]
    wrapped = seeded(1, transform, tv_tensors.Image(image))
    assert isinstance(wrapped, tv_tensors.Image)
    assert torch.equal(wrapped, made)  # type: ignore[arg-type]
    with pytest.raises(SynthgenError, match=r"got a Image; put v2.ToImage\(\) before it"):
        transform(Image.new("RGB", (8, 8)))


def test_nothing_happens_at_no_strength(images: list[torch.Tensor]) -> None:
    for still in (RandomFieldColor(0, 0, 0, 0), RandomFieldAffine(0, 0, 0, 0)):
        assert (still(images[0]).int() - images[0].int()).abs().max() <= 1


def test_colours_wander_over_the_image() -> None:
    grey = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    torch.manual_seed(0)
    made = RandomFieldColor()(grey).float()
    assert float(made.std()) > 5
    assert torch.equal(made[0], made[1])  # grey has no hue and no saturation
    assert float((made[:, 1:] - made[:, :-1]).abs().max()) < 12  # smooth
    colour = grey.clone()
    colour[0], colour[2] = 190, 90
    only = RandomFieldColor(0, 0, 0, 0.05)(colour).float()
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    assert float((only * weights).sum(0).std()) < 1  # hue keeps the luma
    assert float(only[0].std()) > 3


def test_masks_and_boxes_move_with_the_pixels() -> None:
    """A white rectangle: the mask stays on it, the box around it, the label as it is."""
    moved = 0.0
    for seed in range(12):
        picture = torch.zeros(3, 80, 96, dtype=torch.uint8)
        picture[:, 24:52, 30:66] = 255
        sample = {
            "image": tv_tensors.Image(picture),
            "mask": tv_tensors.Mask(picture[0] // 255),
            "boxes": tv_tensors.BoundingBoxes([[30, 24, 36, 28]], format="XYWH", canvas_size=(80, 96)),
            "label": torch.tensor([3]),
        }
        out = seeded(seed, RandomFieldAffine(), sample)
        white = out["image"][0] > 127  # type: ignore[index]
        mask = out["mask"].bool()  # type: ignore[index]
        assert float((white == mask).float().mean()) > 0.985  # all but the edge, which is interpolated
        assert mask.shape == (80, 96)
        y, x = mask.nonzero(as_tuple=True)
        box = out["boxes"]  # type: ignore[index]
        assert box.format == tv_tensors.BoundingBoxFormat.XYWH
        around = [int(x.min()), int(y.min()), int(x.max() - x.min() + 1), int(y.max() - y.min() + 1)]
        assert box[0].tolist() == pytest.approx(around, abs=1)
        assert out["label"].tolist() == [3]  # type: ignore[index]
        moved += float((mask != sample["mask"].bool()).float().mean())
        still = seeded(seed, RandomFieldColor(), sample)
        for key in ("mask", "boxes", "label"):
            assert torch.equal(still[key], sample[key])  # type: ignore[index, arg-type]
    assert moved / 12 > 0.02


def test_a_box_that_leaves_the_image_has_no_area() -> None:
    boxes = tv_tensors.BoundingBoxes([[0, 0, 4, 4], [30, 30, 40, 40]], format="XYXY", canvas_size=(64, 64))
    transform = RandomFieldAffine()
    far = {"displacement": torch.full((1, 64, 64, 2), 0.5)}  # every pixel comes from 16 to the lower right
    assert transform.transform(boxes, far).tolist() == [[0, 0, 0, 0], [14, 14, 24, 24]]
    kept = v2.SanitizeBoundingBoxes(labels_getter=None)(
        {"image": torch.zeros(3, 64, 64), "boxes": transform.transform(boxes, far)}
    )
    assert len(kept["boxes"]) == 1


def test_real_masks_stay_on_their_objects() -> None:
    """Of the real set: what the moved mask cuts out is what was cut out before, moved."""
    for image, mask in zip(members("jpg", 5), members("mask.png", 5), strict=True):
        cut = image * (mask > 0)
        both = seeded(4, RandomFieldAffine(), tv_tensors.Image(image), tv_tensors.Mask(mask))
        alone = seeded(4, RandomFieldAffine(), tv_tensors.Image(cut))
        again = both[0] * (both[1] > 0)  # type: ignore[index]
        assert float((again.float() - alone.float()).abs().mean()) < 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [(64, 64), (90, 41), (7, 300)])
def test_replay_is_the_same_to_the_bit(size: tuple[int, int]) -> None:
    recorded, generator = Recorded(side=48, magnitude=20, erasing=0.5), np.random.default_rng(0)
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)).permute(2, 0, 1)
    different = set()
    for _ in range(60):
        params = recorded.draw(*size, generator)
        assert params.dtype == np.float32
        assert params.shape == (len(recorded.names),) == (13,)
        torch.manual_seed(len(different))
        one = recorded.apply(image, params)
        torch.manual_seed(99)
        np.random.default_rng().random()
        # as it comes back from a file, and of an image that lies otherwise in memory
        two = recorded.apply(image.contiguous(), np.frombuffer(params.tobytes(), np.float32))
        assert one.shape == (3, 48, 48)
        assert one.dtype == torch.uint8
        assert torch.equal(one, two)
        different.add(one.numpy().tobytes())
    assert len(different) == 60


def test_parameters_are_what_the_settings_allow() -> None:
    recorded, generator = Recorded(side=64, scale=(0.2, 0.6), flip=0.3, erasing=0.4), np.random.default_rng(7)
    drawn = np.stack([recorded.draw(100, 160, generator) for _ in range(1500)])
    column = dict(zip(recorded.names, drawn.T, strict=True))
    top, left, high, wide = (column[f"crop_{name}"] for name in ("top", "left", "height", "width"))
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + high <= 100).all()
    assert (left + wide <= 160).all()
    assert 0.19 < (high * wide / 16000).min() < 0.22 < 0.58 < (high * wide / 16000).max() < 0.61
    assert 0.72 < (wide / high).min() < 0.78 < 1.28 < (wide / high).max() < 1.37
    assert column["flip"].mean() == pytest.approx(0.3, abs=0.04)
    is_erased = column["erase_height"] > 0
    assert is_erased.mean() == pytest.approx(0.4, abs=0.05)
    assert (drawn[~is_erased, -4:] == -1).all()
    assert (column["erase_top"] + column["erase_height"])[is_erased].max() <= 64
    assert np.unique(column["operation_0"]).tolist() == list(range(14))
    rotated = column["magnitude_1"][column["operation_1"] == list(REACH).index("Rotate")]
    assert set(rotated.tolist()) == {-9.0, 9.0}
    plain = Recorded(side=8, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0, operations=0, erasing=0)
    assert plain.draw(30, 20, generator).tolist() == [5, 0, 20, 20, 0, -1, -1, -1, -1]
    flipped = Recorded(side=20, scale=(1, 1), ratio=(0.5, 2), flip=1, operations=0, erasing=0)
    image = torch.arange(1200, dtype=torch.uint8).view(3, 20, 20)
    assert torch.equal(flipped.apply(image, flipped.draw(20, 20, generator)), image.flip(-1))


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_operations_are_torchvision_s(name: str, images: list[torch.Tensor]) -> None:
    """Magnitudes and pixels of its RandAugment, at 9 of 30."""
    theirs = v2.RandAugment(interpolation=v2.InterpolationMode.BILINEAR)
    assert list(OPERATIONS) == list(REACH) == list(theirs._AUGMENTATION_SPACE)
    reach, is_signed = REACH[name]
    magnitudes, signed = theirs._AUGMENTATION_SPACE[name]
    wanted = magnitudes(31, 64, 64)
    assert is_signed == signed
    much = reach(9 / 30, 64)
    assert much == pytest.approx(0 if wanted is None else float(wanted[9]), abs=1e-5)
    for sign in (1, -1) if signed else (1,):
        made = OPERATIONS[name](images[1], sign * much)
        expected = theirs._apply_image_or_video_transform(
            images[1], name, sign * much, interpolation=theirs.interpolation, fill=theirs._fill
        )
        assert torch.equal(made, expected)
        assert torch.equal(made, images[1]) == (name == "Identity")


def test_what_is_erased_is_imagenet_s_mean(images: list[torch.Tensor]) -> None:
    recorded = Recorded(side=64, operations=0)
    params = np.array([0, 0, 64, 64, 0, 10, 20, 5, 7], np.float32)
    made = recorded.apply(images[0], params)
    rectangle = made[:, 10:15, 20:27].flatten(1)
    assert rectangle.unique(dim=1).T.tolist() == [[124, 116, 104]]
    made[:, 10:15, 20:27] = images[0][:, 10:15, 20:27]
    assert torch.equal(made, images[0])


def test_settings_have_a_json_form_and_a_hash() -> None:
    recorded = Recorded(side=96, scale=[0.25, 1])  # type: ignore[arg-type]
    assert Recorded.of(recorded.settings()) == recorded
    assert recorded.settings()["scale"] == [0.25, 1.0]
    assert recorded.digest == Recorded(side=96, scale=(0.25, 1.0)).digest != Recorded(side=96).digest
    with pytest.raises(FolderError, match=r"of form 0 .*; this version replays form 1"):
        Recorded.of({**recorded.settings(), "form": 0})
    with pytest.raises(FolderError, match="make them anew under another name"):
        Recorded.of({**recorded.settings(), "blur": 1})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"side": 4}, "side: 4; 8 to 8192 is wanted"),
        ({"scale": [0.5]}, r"scale: \[0.5\]; the least and the greatest, in \(0, 1\], are wanted"),
        ({"scale": [0.5, 1.5]}, r"scale: \[0.5, 1.5\]; the least"),
        ({"ratio": [2, 1]}, r"ratio: \[2.0, 1.0\]; the least and the greatest, above 0, are wanted"),
        ({"flip": 1.5}, "flip: 1.5; 0 to 1 is wanted"),
        ({"operations": -1}, "operations: -1; 0 to 16 is wanted"),
        ({"magnitude": 31}, "magnitude: 31; 0 to 30 is wanted"),
        ({"erasing": -0.1}, "erasing: -0.1; 0 to 1 is wanted"),
    ],
)
def test_wrong_settings_are_one_line(keys: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=f"^{message}"):
        Recorded(**keys)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("inflated", "scale", "probability", "colour", "hue"),
    [(False, 0.08, 0.8, (0.2, 1.8), (-0.2, 0.2)), (True, 0.2, 0.4, (0.6, 1.4), (-0.1, 0.1))],
)
def test_adainf_s_numbers(
    inflated: bool, scale: float, probability: float, colour: tuple[float, float], hue: tuple[float, float]
) -> None:
    """arXiv 2403.12448: more inflation, weaker augmentation."""
    crop, flip, jitters, grey = adainf_augmentation(32, inflated).transforms
    assert (tuple(crop.size), crop.scale) == ((32, 32), (scale, 1.0))
    assert (flip.p, grey.p, jitters.p) == (0.5, 0.2, probability)
    [jitter] = jitters.transforms
    assert jitter.brightness == jitter.contrast == jitter.saturation == pytest.approx(colour)
    assert jitter.hue == pytest.approx(hue)
    assert ADAINF_REPLICATION == 10


def test_adainf_gives_views(images: list[torch.Tensor]) -> None:
    for inflated in (False, True):
        view = adainf_augmentation(32, inflated)
        one, other = seeded(0, view, images[0]), seeded(1, view, images[0])
        assert one.shape == (3, 32, 32)  # type: ignore[attr-defined]
        assert not torch.equal(one, other)  # type: ignore[arg-type]
        assert torch.equal(one, seeded(0, view, images[0]))  # type: ignore[arg-type]
