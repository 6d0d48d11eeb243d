"""Characters drawn with fonts: which there are, that they are what they are called, and faulty fonts."""

from __future__ import annotations

import pathlib
import unicodedata

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from metarl import families
from metarl.envs.fewshot import fonts
from metarl.families import SPLITS
from metarl.settings import SettingsError

TTF = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@pytest.fixture(scope="module")
def drawn():
    return families.make("glyphs")._images


@pytest.fixture
def three(tmp_path):
    """A directory of three fonts, one of them in a folder below."""
    (tmp_path / "serif").mkdir()
    for name in ("DejaVuSans.ttf", "serif/DejaVuSerif.ttf", "cmr10.ttf"):
        (tmp_path / name).symlink_to(TTF / pathlib.Path(name).name)
    return tmp_path


def _codes(drawn):
    return set(fonts.codes(drawn).tolist())


def test_characters_that_look_alike_are_one(drawn):
    """Else a network could be tested on a shape that it was trained on: A of three scripts, and c, a smaller C."""
    codes = _codes(drawn)
    assert len(codes) > 400
    assert {ord(c) for c in LETTERS + "0123456789"} <= codes
    assert not {ord(c) for c in "cosvwxz"} & codes
    greek = ("ALPHA", "BETA", "EPSILON", "ZETA", "ETA", "IOTA", "KAPPA", "MU", "NU", "OMICRON", "RHO", "TAU", "CHI")
    assert not {ord(unicodedata.lookup(f"GREEK CAPITAL LETTER {name}")) for name in greek} & codes
    cyrillic = ("A", "VE", "IE", "KA", "EM", "EN", "O", "ER", "ES", "TE", "HA")
    assert not {ord(unicodedata.lookup(f"CYRILLIC CAPITAL LETTER {name}")) for name in cyrillic} & codes
    assert not {ord(c) for c in "ÄÉñ"} & codes, "composed letters"
    assert list(fonts.codes(drawn)) == sorted(codes)


def test_only_fonts_that_have_a_character_draw_it(drawn):
    """An empty box of a font that lacks it would be the same in all classes: all have A, only DejaVu has Armenian."""
    counts = dict(zip(fonts.codes(drawn).tolist(), drawn.counts.tolist(), strict=True))
    assert counts[ord("A")] == len(fonts.find(None)) == 21
    assert counts[0x0531] == 12
    assert drawn.names[list(counts).index(0x0531)] == "U+0531 ARMENIAN CAPITAL LETTER AYB"
    assert len(drawn.images) == sum(counts.values())
    starts = np.cumsum(drawn.counts) - drawn.counts
    for at in (list(counts).index(ord("A")), list(counts).index(0x0531)):
        images = drawn.images[starts[at] : starts[at] + drawn.counts[at]]
        assert len({image.tobytes() for image in images}) == len(images)
        assert images.reshape(len(images), -1).max(1).min() > 150, "an image without ink"


def test_images_show_the_character_of_their_class(drawn):
    """Letters drawn by Pillow's own text routine are recognised by the mean image of their class."""
    font = ImageFont.truetype(str(TTF / "DejaVuSans.ttf"), 60)
    at = [fonts.codes(drawn).tolist().index(ord(letter)) for letter in LETTERS]
    starts = np.cumsum(drawn.counts) - drawn.counts
    means = [drawn.images[starts[c] : starts[c] + drawn.counts[c], 0].mean(0).ravel() for c in at]
    hits = 0
    for number, letter in enumerate(LETTERS):
        canvas = Image.new("L", (100, 100))
        ImageDraw.Draw(canvas).text((20, 20), letter, 255, font)
        ink = canvas.crop(canvas.getbbox())
        scale = 20 / max(ink.size)
        ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))))
        plain = Image.new("L", (28, 28))
        plain.paste(ink, ((28 - ink.width) // 2, (28 - ink.height) // 2))
        scores = [np.corrcoef(np.asarray(plain).ravel(), mean)[0, 1] for mean in means]
        hits += int(np.argmax(scores)) == number
    assert hits >= 24


def test_splits_share_no_character():
    family = families.make("glyphs")
    parts = [set(family.members(split).tolist()) for split in SPLITS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(family._images.names)
    assert [round(len(part) / len(set.union(*parts)), 1) for part in parts] == [0.6, 0.2, 0.2]


def test_fonts_of_ones_own(three):
    """The same at every rendering, and another font's image of a letter is another."""
    files = fonts.find(str(three))
    assert [file.name for file in files] == ["DejaVuSans.ttf", "DejaVuSerif.ttf", "cmr10.ttf"]
    one, two = (fonts.render(files, 12, 3) for _ in range(2))
    assert np.array_equal(one.images, two.images)
    assert one.images.dtype == np.uint8
    assert one.images.shape[1:] == (1, 12, 12)
    assert set(one.counts.tolist()) == {3}
    assert {ord(c) for c in LETTERS} <= _codes(one)


def test_a_font_of_one_sign_for_all_is_left_out(three):
    """Apple's last resort has a picture of the block for every character there is."""
    assert not fonts._is_text(fonts._opened(TTF / "LastResortHE-Regular.ttf", 16))
    assert fonts._is_text(fonts._opened(TTF / "DejaVuSans.ttf", 16))


def test_faulty_fonts_give_one_line(three, tmp_path):
    (three / "broken.ttf").write_bytes(b"no font")
    with pytest.raises(SettingsError, match=r"broken.ttf cannot be read as a font \(.*\); remove it"):
        fonts.render(fonts.find(str(three)), 12, 3)
    empty = tmp_path / "empty"
    empty.mkdir()
    for settings, message in (
        ({"root": str(empty)}, "env=glyphs finds no fonts: .*empty holds no TrueType or OpenType font"),
        ({"root": str(empty / "no")}, "no is no directory"),
        ({"root": str(three / "serif")}, "no character is in 12 of 1 text fonts; lower env.shots= or env.queries="),
    ):
        with pytest.raises(SettingsError, match=message):
            families.make("glyphs", **settings).pool()
