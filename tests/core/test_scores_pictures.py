"""Preprocessing against the libraries that the scorers' authors used: to the bit where Pillow does the work."""

import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from torchvision.transforms import functional as TF

from vico_spin.intake import BadFile, open_picture
from vico_spin.scores.pictures import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LongestSide,
    ShortestSide,
    Square,
    SquareThenClip,
)
from vico_spin.scripts.tiny_scorers import picture

SIZES = [(300, 200), (200, 300), (224, 224), (225, 224), (224, 227), (151, 401), (512, 512), (31, 17), (1000, 229)]


@pytest.mark.parametrize("size", SIZES)
def test_shortest_side_equals_transformers_to_the_bit(size):
    """The Pillow processor of transformers 4 (slow) and 5 (Pil), as PickScore and CLIP score are published with."""
    import transformers

    processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    theirs = processor()(picture(*size), return_tensors="pt").pixel_values
    assert torch.equal(ShortestSide(odd="transformers")([picture(*size)]), torch.as_tensor(theirs))


@pytest.mark.parametrize("size", SIZES)
def test_shortest_side_equals_torchvision_to_the_bit(size):
    """OpenAI's own pipeline, which the aesthetic predictor and ImageReward use; DINO's with its numbers."""
    for resize, mean, std in ((224, CLIP_MEAN, CLIP_STD), (256, IMAGENET_MEAN, IMAGENET_STD)):
        steps = [Resize(resize, InterpolationMode.BICUBIC), CenterCrop(224), ToTensor(), Normalize(mean, std)]
        theirs = Compose(steps)(picture(*size))[None]
        assert torch.equal(ShortestSide(resize, 224, mean, std)([picture(*size)]), theirs)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [size for size in SIZES if max(size) != 224])
def test_longest_side_equals_hps_to_the_bit(size, antialias):
    """hpsv2's transform: ToTensor, resize of floats to round(side · 224 / longest), zeros beside it, Normalize."""
    pixels = ToTensor()(picture(*size))
    scale = 224 / float(max(size))
    height, width = (round(side * scale) for side in pixels.shape[1:])
    pixels = TF.resize(pixels, [height, width], InterpolationMode.BICUBIC, antialias=antialias)
    x, y = 224 - width, 224 - height
    pixels = TF.pad(pixels, [x // 2, y // 2, x - x // 2, y - y // 2], fill=0)
    theirs = Normalize(CLIP_MEAN, CLIP_STD)(pixels)[None]
    assert torch.equal(LongestSide(antialias=antialias)([picture(*size)]), theirs)


def test_longest_side_pads_with_black():
    """A 2:1 picture leaves 56 rows above: black is (0 − mean) / std."""
    black = ((0 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD))[:, None, None]
    rows = LongestSide()([picture(448, 224)])[0, :, :56]
    assert torch.equal(rows, black.expand_as(rows))


@pytest.mark.parametrize("size", SIZES[:4])
def test_square_is_dreammatchers(size):
    """numpy's image / 127.5 − 1 after Pillow's bicubic to 256 × 256; CLIP's 224 from there on floats."""
    import numpy as np

    small = np.asarray(picture(*size).resize((256, 256), Image.BICUBIC))
    theirs = torch.from_numpy((small / 127.5 - 1.0).astype(np.float32)).permute(2, 0, 1)[None]
    assert torch.equal(Square()([picture(*size)]), theirs)
    steps = [Normalize([-1.0] * 3, [2.0] * 3), Resize(224, InterpolationMode.BICUBIC), CenterCrop(224)]
    clip = Compose([*steps, Normalize(CLIP_MEAN, CLIP_STD)])(theirs)
    assert torch.equal(SquareThenClip()([picture(*size)]), clip)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_every_mode_is_opened_as_rgb(tmp_path, mode):
    path = tmp_path / ("picture.tiff" if mode == "CMYK" else "picture.png")
    (picture(40, 30).convert("L").convert(mode) if mode == "I;16" else picture(40, 30).convert(mode)).save(path)
    assert open_picture(path, path.name).mode == "RGB"


@pytest.mark.parametrize("content", [b"", b"not a picture", "half"])
def test_what_does_not_decode_is_named(tmp_path, content):
    path = tmp_path / "broken.png"
    picture(64, 64).save(path)
    path.write_bytes(path.read_bytes()[:900] if content == "half" else content)
    with pytest.raises(BadFile, match=r"broken\.png.*does not decode"):
        open_picture(path, path.name)
