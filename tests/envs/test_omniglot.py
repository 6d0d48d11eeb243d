"""Omniglot: its files, its splits, and what a task is made of."""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
import zipfile

import numpy as np
import pytest
from PIL import Image

from metarl import families, train
from metarl.envs.fewshot import classes, omniglot_files
from metarl.envs.fewshot.omniglot_files import DRAWERS, SIDE, TOTAL
from metarl.families import SPLITS
from metarl.settings import SettingsError
from metarl.testing import check_family

DATA = os.environ.get("METARL_DATA")
needs_data = pytest.mark.skipif(
    not DATA or not pathlib.Path(DATA, "omniglot", "omniglot_28.npz").is_file(),
    reason="METARL_DATA names no directory with omniglot/omniglot_28.npz",
)
SIZES = {"images_background": 2, "images_evaluation": 1}


# -- files of exactly the official forms, of three characters ----------------------------------------------------------


def _drawing(character, drawer):
    """A bitmap as Omniglot has it: mode 1, ink 0."""
    ink = np.random.default_rng([character, drawer]).random((SIDE, SIDE)) < 0.2
    return Image.fromarray((~ink).astype(np.uint8) * 255).convert("1")


def _files():
    files = {}
    for character, name in enumerate(
        (
            "images_background/Greek/character01",
            "images_background/Latin/character02",
            "images_evaluation/Keble/character01",
        )
    ):
        for drawer in range(DRAWERS):
            file = io.BytesIO()
            _drawing(character, drawer).save(file, "PNG")
            files[f"{name}/{character:04d}_{drawer + 1:02d}.png"] = file.getvalue()
    return files


FILES = _files()
NAMES = tuple(sorted({name.rpartition("/")[0] for name in FILES}))


@pytest.fixture
def official(tmp_path, monkeypatch):
    """Archives of both sets, whose checksums count as the official ones."""
    monkeypatch.setattr(omniglot_files, "CLASSES", SIZES)
    monkeypatch.setattr(omniglot_files, "TOTAL", 3)
    sums = {}
    for top in SIZES:
        with zipfile.ZipFile(tmp_path / f"{top}.zip", "w") as archive:
            archive.writestr(f"{top}/", "")
            for name, file in FILES.items():
                if name.startswith(top):
                    archive.writestr(name, file)
        sums[f"{top}.zip"] = hashlib.md5((tmp_path / f"{top}.zip").read_bytes()).hexdigest()
    monkeypatch.setattr(omniglot_files, "MD5", sums)
    return tmp_path


def _read(root, size=28):
    return omniglot_files.read(omniglot_files.find(str(root), size), size)


def _unpack(root):
    for top in SIZES:
        with zipfile.ZipFile(root / f"{top}.zip") as archive:
            archive.extractall(root)
        (root / f"{top}.zip").unlink()


def _as_bits(root):
    ink = [[np.asarray(_drawing(c, d)) == 0 for d in range(DRAWERS)] for c in range(3)]
    bits = np.packbits(np.array(ink).reshape(3, DRAWERS, -1), axis=-1)
    np.savez(root / "omniglot_105_bits.npz", bits=bits, names=np.array(NAMES))


@pytest.mark.parametrize("size", [28, 40])
@pytest.mark.parametrize("form", ["zip", "folder", "bits"])
@pytest.mark.parametrize("below", ["", "omniglot", "omniglot-py"])
def test_all_forms_hold_the_same_images(official, form, size, below):
    """Reduced from grey levels by Lanczos' filter, ink 255: not by the nearest pixel, to which Pillow falls back for bitmaps."""
    if form == "folder":
        _unpack(official)
    elif form == "bits":
        _as_bits(official)
    root = official
    if below:
        root = official / "elsewhere"
        root.mkdir()
        (root / below).symlink_to(official)
    found = omniglot_files.find(str(root), size)
    assert found.kind == form
    names, images = omniglot_files.read(found, size)
    assert names == NAMES
    assert images.shape == (3, DRAWERS, size, size)
    for character in range(3):
        for drawer in (0, 7, 19):
            bitmap = _drawing(character, drawer)
            expected = np.asarray(bitmap.convert("L").resize((size, size), Image.Resampling.LANCZOS))
            assert np.array_equal(images[character, drawer], 255 - expected)
            nearest = np.asarray(bitmap.resize((size, size), Image.Resampling.LANCZOS).convert("L"))
            assert not np.array_equal(images[character, drawer], 255 - nearest)


def _spoil_zip(root):
    path = root / "images_evaluation.zip"
    path.write_bytes(path.read_bytes()[:-1])


def _lose_class(root):
    _unpack(root)
    for file in (root / "images_background" / "Latin" / "character02").iterdir():
        file.unlink()


def _lose_drawing(root):
    _unpack(root)
    (root / "images_background" / "Latin" / "character02" / "0001_05.png").unlink()


def _cut_drawing(root):
    _unpack(root)
    file = root / "images_evaluation" / "Keble" / "character01" / "0002_05.png"
    file.write_bytes(file.read_bytes()[:60])


def _other_size(root):
    _unpack(root)
    Image.new("1", (100, 105)).save(root / "images_evaluation" / "Keble" / "character01" / "0002_05.png")


def _cut_npz(root):
    _as_bits(root)
    path = root / "omniglot_105_bits.npz"
    path.write_bytes(path.read_bytes()[:-500])


def _foreign_npz(root):
    np.savez(root / "omniglot_105_bits.npz", x=np.zeros(3))


def _wrong_npz(root):
    np.savez(root / "omniglot_105_bits.npz", bits=np.zeros((3, 20, 8), np.uint8), names=np.array(NAMES))


DAMAGE = {
    _spoil_zip: r"images_evaluation.zip is not the official one \(md5 \w{32}, not \w{32}\); download it again",
    _lose_class: "images_background has 1 characters, not 2",
    _lose_drawing: "images_background/Latin/character02 has 19 drawings, not 20",
    _cut_drawing: "cannot be read .*; copy or download it again",
    _other_size: "cannot be read .*a drawing has 100x105 pixels, not 105x105",
    _cut_npz: "omniglot_105_bits.npz cannot be read",
    _foreign_npz: "omniglot_105_bits.npz cannot be read .*bits|names",
    _wrong_npz: r"'bits' is uint8 \(3, 20, 8\) of 3 classes, not uint8 \(3, 20, 1379\)",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda function: function.__name__.strip("_"))
def test_damaged_files_are_named(official, damage):
    """Catches a traceback, and worse: a training on what is left."""
    damage(official)
    with pytest.raises(SettingsError, match=DAMAGE[damage]) as caught:
        _read(official)
    assert "\n" not in str(caught.value)


def test_absent_data_give_one_line(tmp_path, monkeypatch, capsys):
    """What to put where; nothing is written. The environment counts where no root is given, and a root comes first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METARL_DATA", raising=False)
    assert train.main(["env=omniglot", "iterations=1"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: env=omniglot has no data here: put omniglot_28.npz (or omniglot_105_bits.npz, or ")
    assert line.count("\n") == 1
    assert "env.root=DIR or by the environment variable METARL_DATA" in line
    monkeypatch.setenv("METARL_DATA", str(tmp_path))
    with pytest.raises(SettingsError, match=f"found no data in {tmp_path}: put"):
        families.make("omniglot").pool()
    with pytest.raises(SettingsError, match="found no data in /nowhere: put"):
        families.make("omniglot", root="/nowhere").pool()
    (tmp_path / "omniglot_28.npz").touch()
    with pytest.raises(SettingsError, match=r"found no data in .* \(but omniglot_28.npz, which is for env.size=28\)"):
        families.make("omniglot", size=40).pool()
    assert [path.name for path in tmp_path.iterdir()] == ["omniglot_28.npz"]


def test_too_many_images_are_refused():
    with pytest.raises(SettingsError, match="are more than the 20 drawings of a character"):
        families.make("omniglot", shots=5, queries=16)


# -- the real set ------------------------------------------------------------------------------------------------------


@needs_data
def test_packed_images_are_those_of_the_bits_and_of_an_official_archive():
    """Three independent ways to the same bytes: what was packed by others, 105-bit images reduced here, PNGs reduced here."""
    folder = pathlib.Path(DATA, "omniglot")
    names, packed = _read(DATA)
    assert packed.shape == (TOTAL, DRAWERS, 28, 28)
    bits = np.load(folder / "omniglot_105_bits.npz")
    some = [0, 500, 1622]
    ink = np.unpackbits(bits["bits"][some], axis=-1)[..., : SIDE * SIDE].reshape(-1, SIDE, SIDE)
    reduced = [omniglot_files._reduced(Image.fromarray((1 - x) * np.uint8(255)), 28) for x in ink]
    assert np.array_equal(np.array(reduced).reshape(3, DRAWERS, 28, 28), packed[some])
    with zipfile.ZipFile(folder / "images_background_small1.zip") as archive:
        file = "images_background_small1/Latin/character03"
        drawings = sorted(name for name in archive.namelist() if name.startswith(file) and name.endswith(".png"))
        ours = np.array([omniglot_files._decoded(archive.read(name), 28) for name in drawings])
    assert np.array_equal(ours, packed[names.index("images_background/Latin/character03")])


@needs_data
@pytest.mark.parametrize(
    ("split", "sizes"), [("maml", (1100, 100, 423)), ("vinyals", (1028, 172, 423)), ("lake", (792, 172, 659))]
)
def test_splits_share_no_character(split, sizes):
    family = families.make("omniglot", split=split)
    parts = [family.members(part) for part in SPLITS]
    assert tuple(map(len, parts)) == sizes
    assert sorted(np.concatenate(parts)) == list(range(TOTAL))


@needs_data
def test_splits_are_the_published_ones():
    """Vinyals' test set begins with four characters of Gurmukhi and holds twelve whole alphabets; Lake's is a folder."""
    names = np.array(_read(DATA)[0])
    test = families.make("omniglot", split="vinyals").members("test")
    assert [n for n in names[test] if "Gurmukhi" in n] == [
        f"images_evaluation/Gurmukhi/character{k}" for k in (42, 43, 44, 45)
    ]
    alphabets = {name.split("/")[1] for name in names[test]} - {"Gurmukhi"}
    assert len(alphabets) == 12
    assert {"Kannada", "Keble", "ULOG"} < alphabets
    validation = names[families.make("omniglot", split="vinyals").members("validation")]
    assert {n.split("/")[1]: sum(m.split("/")[1] == n.split("/")[1] for m in validation) for n in validation} == {
        "Armenian": 41,
        "Bengali": 46,
        "Early_Aramaic": 22,
        "Hebrew": 22,
        "Mkhedruli_(Georgian)": 41,
    }
    lake = families.make("omniglot", split="lake")
    assert {n.split("/")[0] for n in names[lake.members("test")]} == {"images_evaluation"}
    assert {n.split("/")[0] for n in names[lake.members("train")]} == {"images_background"}


@needs_data
def test_the_random_split_is_the_same_everywhere():
    """That of SHA-256, which no library changes; another seed gives another."""
    names = _read(DATA)[0]
    order = sorted(names, key=lambda name: hashlib.sha256(f"1/{name}".encode()).hexdigest())
    members = families.make("omniglot").members("test")
    assert {names[m] for m in members} == set(order[1200:])
    assert len(set(members) & set(families.make("omniglot", split_seed=2).members("test"))) < 250


@needs_data
@pytest.mark.parametrize("rotations", ["task", "new", "none"])
def test_turned_drawings_belong_to_their_character(rotations):
    """Every image of a task is that of its character and drawer, turned as the task says; support and query share none."""
    family = families.make("omniglot", ways=20, shots=5, queries=3, rotations=rotations)
    plain = _read(DATA)[1]
    tasks = family.sample_tasks(40, "train", 0)
    values = tasks.values.astype(int)
    characters, turns = values % TOTAL, values // TOTAL
    assert set(np.unique(turns)) == ({0} if rotations == "none" else {0, 1, 2, 3})
    assert all(len(set(row)) == 20 for row in values)
    twins = sum(20 - len(set(row)) for row in characters)
    assert (twins > 0) == (rotations == "new"), "only as new classes may two turns of one character meet"
    support, query = family.draw(tasks, np.arange(40, dtype=np.uint32))
    for shots, each in ((support, 5), (query, 3)):
        assert np.array_equal(shots.targets, np.broadcast_to(np.repeat(np.arange(20), each), (40, 20 * each)))
        for task, way in ((0, 0), (7, 19), (39, 10)):
            drawn = (shots.inputs[task, way * each : (way + 1) * each, 0] * 255).round().astype(np.uint8)
            drawers = plain[characters[task, way]]
            turned = [np.rot90(drawer, turns[task, way]) for drawer in drawers]
            assert all(any(np.array_equal(image, one) for one in turned) for image in drawn)
    known = {image.tobytes() for image in support.inputs[3]}
    assert not known & {image.tobytes() for image in query.inputs[3]}


@needs_data
@pytest.mark.parametrize(
    "settings", [{"rotations": "new", "split": "lake"}, {"ways": 20, "split": "vinyals", "shots": 5}]
)
def test_other_settings_keep_the_contract(settings):
    check_family(families.make("omniglot", **settings))


@needs_data
def test_omniglot_is_trained_continued_and_evaluated(tmp_path, capsys):
    """The command of the README, made small: it says how queries are normalised, and a run that was cut in two is the same."""
    from metarl import evaluate

    small = ["meta_batch_size=2", "env.queries=2", "filters=8", "eval_every=2", "eval_tasks=2", "threads=1"]
    words = ["env=omniglot", "env.ways=5", "env.shots=1", "normalization=support", *small]
    assert train.main([*words, "iterations=4", f"run_dir={tmp_path}/whole"]) == 0
    assert "accuracy (support normalisation) 0." in capsys.readouterr().out
    assert train.main([*words, "iterations=2", f"run_dir={tmp_path}/parts"]) == 0
    assert train.main([*words, "iterations=4", f"run_dir={tmp_path}/parts", "resume=auto"]) == 0
    kept = [sorted((tmp_path / run / "checkpoints").rglob("*4/*.safetensors")) for run in ("whole", "parts")]
    assert len(kept[0]) == 1
    assert kept[0][0].read_bytes() == kept[1][0].read_bytes()
    capsys.readouterr()
    assert evaluate.main([f"run={tmp_path}/whole", "tasks=3", "steps=1"]) == 0
    assert "whole  accuracy (support normalisation) after updates  0: " in capsys.readouterr().out


# -- drawing -----------------------------------------------------------------------------------------------------------


def test_every_ordered_choice_is_equally_likely():
    """One uniform number in every cell of the unit cube: each of the 5 * 4 * 3 choices comes exactly once."""
    cells = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n for n in (5, 4, 3)), indexing="ij"), -1).reshape(-1, 3)
    choices = classes.distinct(cells, 5)
    assert len({tuple(row) for row in choices}) == 60
    assert all(len(set(row)) == 3 for row in choices)
    assert choices.min() == 0
    assert choices.max() == 4
    assert classes.distinct(np.full((2, 3), 1 - 1e-16), np.array([3, 7])).tolist() == [[2, 1, 0], [6, 5, 4]]


def test_classes_of_different_sizes():
    """Rows stay within their class, and reach all of it."""
    counts = np.array([3, 9, 4])
    shape = classes.Shape(ways=2, shots=1, queries=2)
    labels = np.repeat(np.arange(3), counts)
    chosen = np.array([[0, 1], [1, 2]] * 50)
    support, query = classes.pick(shape, chosen, counts, np.arange(100, dtype=np.uint32))
    for picks in (support, query):
        assert np.array_equal(labels[picks.rows], np.take_along_axis(chosen, picks.targets, 1))
    assert set(np.concatenate([support.rows, query.rows], 1).ravel()) == set(range(16))
