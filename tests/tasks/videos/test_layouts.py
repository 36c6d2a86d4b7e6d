"""Layouts as they lie on a disk. The reader does not open a video, so a byte stands for one here."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from vidistill.storage.errors import RequestError
from vidistill.tasks.videos.layouts import IndexParameters, Listing, list_videos
from vidistill.tasks.videos.scan import scan

TOO_DEEP = "too deep: of a class folder the videos that lie in it itself are read"
LEFT_RIGHT = [f"{label}/{number}.mp4" for label in ("left", "right") for number in range(8)]


def lay(root: Path, paths: Iterable[str]) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def write_table(path: Path, rows: Iterable[str], header: str = "path,label,split") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def read(root: Path, **parameters: object) -> Listing:
    return list_videos(root, IndexParameters.model_validate(parameters))


def splits(listing: Listing) -> dict[str, str]:
    return {entry.path: entry.split for entry in listing.entries}


def reasons(listing: Listing) -> dict[str, str]:
    return {rejected.video: rejected.reason for rejected in listing.rejected}


def units(listing: Listing, split: str) -> set[str]:
    return {entry.unit for entry in listing.entries if entry.split == split}


def lay_ucf101(root: Path, lists: str = "", suffix: str = ".avi") -> Path:
    """Classes b and a (in this order), four groups of two clips each; group 1 is split 1's test, group 2 split 2's."""
    names = [
        f"{label}/v_{label}_g{group:02d}_c{clip:02d}" for label in "ba" for group in (1, 2, 3, 4) for clip in (1, 2)
    ]
    lay(root, [name + suffix for name in names])
    folder = root / lists
    folder.mkdir(exist_ok=True)
    (folder / "classInd.txt").write_text("1 b\r\n2 a\r\n")
    for split in (1, 2):
        test = [name for name in names if f"_g{split:02d}_" in name]
        train = [name for name in names if name not in test]
        (folder / f"testlist{split:02d}.txt").write_text("".join(f"{name}.avi\r\n" for name in test))
        (folder / f"trainlist{split:02d}.txt").write_text("".join(f"{name}.avi 1\r\n" for name in train))
    return root


# --- class folders -----------------------------------------------------------------------------------------------


def test_class_folders_are_split_by_seed_within_every_class(tmp_path):
    root = lay(tmp_path, LEFT_RIGHT)
    listing = read(root)
    assert (listing.layout, listing.classes, listing.flips) == ("folders", ("left", "right"), False)
    assert [entry.path for entry in listing.entries] == sorted(LEFT_RIGHT)
    assert Counter(entry.label for entry in listing.entries if entry.split == "test") == {"left": 2, "right": 2}
    assert splits(read(root)) == splits(listing)
    assert any(splits(read(root, split_seed=seed)) != splits(listing) for seed in (1, 2, 3))
    assert Counter(splits(read(root, test_fraction=0.5)).values()) == {"test": 8, "train": 8}


def test_a_seeded_split_is_the_same_for_everyone_and_hardly_moves_when_videos_come(tmp_path):
    before = splits(read(lay(tmp_path, LEFT_RIGHT)))
    assert [path for path, split in before.items() if split == "test"] == [
        "left/0.mp4",
        "left/7.mp4",
        "right/3.mp4",
        "right/5.mp4",
    ]
    after = splits(read(lay(tmp_path, ["up/1.mp4", "up/2.mp4", "left/8.mp4"])))
    assert sum(after[path] != split for path, split in before.items()) <= 1


def test_a_seeded_split_cuts_no_group(tmp_path):
    names = [
        f"{label}/{label}_g{group:04d}_c{clip:02d}.mp4" for label in "ab" for group in range(6) for clip in range(5)
    ]
    listing = read(lay(tmp_path, names))
    assert len(units(listing, "train")) == 8
    assert len(units(listing, "test")) == 4
    assert "the test split is 20 of 60 videos, drawn with seed 0 in whole groups" in listing.notes[0]
    assert not units(listing, "train") & units(listing, "test")


def test_train_and_test_folders_are_the_split(tmp_path):
    paths = ["train/a/1.mp4", "train/b/2.mp4", "test/a/3.mp4", "test/b/4.mp4"]
    more = ["val/a/5.mp4", "extra/6.mp4", "train/7.mp4", "train/a/deep/8.mp4"]
    listing = read(lay(tmp_path, [*paths, *more]))
    assert splits(listing) == {path: path.split("/")[0] for path in paths}
    assert reasons(listing) == {
        "val/a/5.mp4": "in val/, while test/ is the split that is scored",
        "extra/6.mp4": "in no class folder",
        "train/7.mp4": "in no class folder",
        "train/a/deep/8.mp4": TOO_DEEP,
    }


@pytest.mark.parametrize("name", ["val", "validation", "Test"])
def test_a_validation_folder_stands_in_for_a_test_folder(tmp_path, name):
    listing = read(lay(tmp_path, ["train/a/1.mp4", "train/b/2.mp4", f"{name}/a/3.mp4", f"{name}/b/4.mp4"]))
    assert Counter(splits(listing).values()) == {"train": 2, "test": 2}


def test_labelled_validation_folders_stand_in_for_test_videos_without_labels(tmp_path):
    listing = read(lay(tmp_path, ["train/a/1.mp4", "train/b/2.mp4", "val/a/3.mp4", "val/b/4.mp4", "test/5.mp4"]))
    assert Counter(splits(listing).values()) == {"train": 2, "test": 2}
    assert reasons(listing) == {"test/5.mp4": "in test/, while val/ is the split that is scored"}


def test_a_class_called_train_is_a_class(tmp_path):
    assert read(lay(tmp_path, ["train/1.mp4", "train/2.mp4", "bus/1.mp4", "bus/2.mp4"])).classes == ("bus", "train")


def test_a_holdout_leaves_the_test_split_alone(tmp_path):
    root = lay_ucf101(tmp_path)
    whole, part = read(root), read(root, holdout=True)
    train = {path for path, split in splits(whole).items() if split == "train"}
    assert set(splits(part)) == train
    assert Counter(splits(part).values()) == {"train": 8, "test": 4}
    assert not units(part, "train") & units(part, "test")
    assert set(reasons(part)) == set(splits(whole)) - train
    assert set(reasons(part).values()) == {"in the test split, which a holdout leaves alone"}


# --- every file has an outcome -----------------------------------------------------------------------------------


def test_every_file_is_an_entry_or_has_a_reason(tmp_path):
    root = lay(tmp_path, [*LEFT_RIGHT, "left/notes.txt", "left/noext", "top.mp4", "left/in/deep.mp4"])
    lay(root, [".hidden.mp4", "left/.DS_Store", ".git/x.mp4", "boxes.json"])
    (root / "left/empty.avi").touch()
    (root / "left/clip.mp4").mkdir()
    (root / "up").mkdir()
    (root / "down/x.avi").mkdir(parents=True)
    (root / "left/broken.mp4").symlink_to("nowhere.mp4")
    (root / "left/loop").symlink_to(root)
    (root / "mirror").symlink_to(root / "left")
    listing = read(root)
    assert set(splits(listing)) == set(LEFT_RIGHT)
    assert reasons(listing) == {
        "left/notes.txt": "not a video file (.txt)",
        "left/noext": "not a video file (no extension)",
        "top.mp4": "in no class folder",
        "left/in/deep.mp4": TOO_DEEP,
        "left/empty.avi": "an empty file",
        "left/clip.mp4": "a folder, though named like a video",
        "up": "an empty folder",
        "down/x.avi": "a folder, though named like a video",
        "left/broken.mp4": "a link to a file that is not there",
        "left/loop": "a link to a folder that it lies in",
        "mirror": "a link to a folder that is read in its own place",
    }
    assert "folder 'up' holds no videos itself and is no class" in listing.notes


def test_files_that_cannot_be_looked_at_have_failed_when_they_are_read(tmp_path):
    """As those of a class folder that nobody may enter; by a name that no system takes, as tests may run as root."""
    (lay(tmp_path, LEFT_RIGHT) / "left/far.mp4").symlink_to("n" * 300)
    (tmp_path / "labels.csv").symlink_to("n" * 300)
    listing = read(tmp_path, layout="folders")
    assert "left/far.mp4" in splits(listing)
    _, rejected = scan(tmp_path, listing, memo=tmp_path / "memo.sqlite")
    assert [one.reason for one in rejected if one.video == "left/far.mp4"] == ["cannot be read: File name too long"]
    with pytest.raises(RequestError, match=r"labels\.csv cannot be read as CSV: File name too long"):
        read(tmp_path)
    with pytest.raises(RequestError, match=r"nnn cannot be read \(File name too long\): name a folder"):
        read(tmp_path / ("n" * 300))


def test_names_with_spaces_and_of_any_script_work(tmp_path):
    paths = ["jump rope/a b (1).mp4", "jump rope/ü!.MP4", "跑步/视频.webm", "跑步/[x] #2.mkv"]
    listing = read(lay(tmp_path, paths))
    assert set(splits(listing)) == set(paths)
    assert listing.classes == ("jump rope", "跑步")


def test_a_name_that_is_no_text_is_rejected_in_ascii(tmp_path):
    lay(tmp_path, LEFT_RIGHT)
    for name in (b"/\xff.mp4", b"/x.\xff"):
        with open(os.fsencode(tmp_path / "left") + name, "wb") as file:
            file.write(b"x")
    listing = read(tmp_path)
    reason = "its name is not valid UTF-8: rename it"
    assert reasons(listing) == {"left/\\udcff.mp4": reason, "left/x.\\udcff": reason}
    assert Listing.model_validate_json(listing.model_dump_json()) == listing


def test_linked_class_folders_are_followed(tmp_path):
    lay(tmp_path / "elsewhere", LEFT_RIGHT)
    (tmp_path / "data").mkdir()
    for label in ("left", "right"):
        (tmp_path / "data" / label).symlink_to(tmp_path / "elsewhere" / label)
    assert len(read(tmp_path / "data").entries) == 16


def test_links_to_what_is_not_walked_are_followed(tmp_path):
    lay(tmp_path / ".store", LEFT_RIGHT)
    for label in ("left", "right"):
        (tmp_path / label).symlink_to(tmp_path / ".store" / label)
    assert len(read(tmp_path).entries) == 16


# --- UCF101 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lists", ["", "splits", "ucfTrainTestlist"])
@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_ucf101_has_its_official_splits_and_class_order(tmp_path, lists, suffix):
    root = lay_ucf101(tmp_path, lists, suffix)
    for split in (1, 2):
        listing = read(root, split=split)
        assert (listing.layout, listing.classes, listing.flips) == ("ucf101", ("b", "a"), True)
        assert units(listing, "test") == {f"a_g{split:02d}", f"b_g{split:02d}"}
        assert (len(listing.entries), listing.rejected, listing.notes) == (16, (), ())


def test_ucf101_may_lie_a_folder_deeper_than_its_lists(tmp_path):
    lay_ucf101(tmp_path / "UCF-101")
    (tmp_path / "ucfTrainTestlist").mkdir()
    for path in (tmp_path / "UCF-101").glob("*.txt"):
        path.rename(tmp_path / "ucfTrainTestlist" / path.name)
    assert len(read(tmp_path).entries) == 16


def test_ucf101_says_what_is_listed_but_missing_and_there_but_unlisted(tmp_path):
    root = lay(lay_ucf101(tmp_path), ["a/v_a_g09_c01.avi"])
    (root / "a/v_a_g02_c01.avi").unlink()
    (root / "a/v_a_g02_c02.avi").write_bytes(b"")
    listing = read(root)
    assert reasons(listing) == {
        "a/v_a_g02_c01.avi": "listed (trainlist01.txt, line 7) but not there",
        "a/v_a_g02_c02.avi": "an empty file, though listed (trainlist01.txt, line 8)",
        "a/v_a_g09_c01.avi": "in none of the lists",
    }
    assert [item.outcome for item in listing.rejected] == ["failed", "failed", "filtered"]


def test_a_listed_link_to_nothing_has_failed_unless_on_neither_side(tmp_path):
    (lay(tmp_path, LEFT_RIGHT) / "left/8.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "left/9.mp4").symlink_to("nowhere.mp4")
    rows = [f"{path},{path.split('/')[0]},{'test' if '7' in path else 'train'}" for path in LEFT_RIGHT]
    listing = read(write_table(tmp_path / "t.csv", [*rows, "left/8.mp4,left,train", "left/9.mp4,left,val"]))
    assert [(item.outcome, item.reason) for item in listing.rejected] == [
        ("failed", "a link to a file that is not there, though listed (t.csv, line 18)"),
        ("filtered", "in the validation split; the test split is the one that is scored"),
    ]


def test_part_of_ucf101_is_read_with_the_whole_lists(tmp_path):
    root = lay_ucf101(tmp_path)
    with (root / "classInd.txt").open("a") as classes, (root / "trainlist01.txt").open("a") as train:
        classes.write("3 c\n")
        train.write("c/v_c_g01_c01.avi 3\n")
    listing = read(root)
    assert listing.classes == ("b", "a")
    assert listing.notes == ("1 listed class has no videos here and is left out (c)",)


def test_lists_may_be_numbered_without_a_zero(tmp_path):
    root = lay_ucf101(tmp_path)
    for side in ("train", "test"):
        (root / f"{side}list01.txt").rename(root / f"{side}list1.txt")
    assert len(read(root).entries) == 16


def test_the_case_of_a_listed_name_may_differ_from_the_files(tmp_path):
    root = lay_ucf101(tmp_path)
    (root / "a/v_a_g01_c01.avi").rename(root / "a/V_A_g01_c01.avi")
    assert splits(read(root))["a/V_A_g01_c01.avi"] == "test"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "classInd.txt").write_text("1 a\n"), "class 'b' is not in"),
        (lambda root: (root / "classInd.txt").write_text("a\nb\n"), "expected '<number> <class>'"),
        (
            lambda root: (root / "testlist01.txt").write_text("a/v_a_g02_c01.avi"),
            "listed twice: trainlist01.txt, line 7 and",
        ),
        (lambda root: (root / "testlist01.txt").write_text("v_a_g01_c01.avi"), "expected <class>/<video>"),
        (lambda root: (root / "testlist01.txt").unlink(), "split 1 of .* has no testlist01.txt beside"),
        (lambda root: (root / "testlist01.txt").write_bytes(b"\xff\xfe"), "is not UTF-8 text"),
    ],
)
def test_ucf101_lists_that_contradict_themselves_are_errors(tmp_path, change, message):
    root = lay_ucf101(tmp_path)
    change(root)
    with pytest.raises(RequestError, match=message):
        read(root)


def test_the_real_ucf101_subset_has_its_published_split(data_root):
    listing = read(data_root / "ucf101_10")
    assert Counter(splits(listing).values()) == {"train": 528, "test": 212}
    assert listing.classes[3:5] == ("JumpingJack", "JumpRope")
    with (data_root / "ucf101_10" / "manifest.csv").open() as file:
        assert splits(listing) == {row["clip"]: row["split1"] for row in csv.DictReader(file)}
    assert not units(listing, "train") & units(listing, "test")
    assert listing.rejected == ()


# --- tables ------------------------------------------------------------------------------------------------------


def test_a_table_of_paths_is_read_from_its_own_folder_or_from_the_datas(tmp_path):
    root = lay(tmp_path, ["videos/ä b.mp4", "videos/2.mp4", "splits/3.mp4", "videos/4.mp4", "videos/5.mp4"])
    rows = ['"videos/ä b.mp4",x,train', "../videos/2.mp4,y,train", "3.mp4,x,TEST", "videos/4.mp4,y,val"]
    write_table(root / "splits/table.csv", rows)
    listing = read(root)
    assert (listing.layout, listing.flips) == ("csv", False)
    assert splits(listing) == {"videos/ä b.mp4": "train", "videos/2.mp4": "train", "splits/3.mp4": "test"}
    assert reasons(listing) == {
        "videos/4.mp4": "in the validation split; the test split is the one that is scored",
        "videos/5.mp4": "in none of the lists",
    }


@pytest.mark.parametrize(("given", "known"), [("on", "on"), (True, "on"), (False, "off"), ("auto", "auto")])
def test_flips_are_switched_as_yaml_reads_the_words(given: object, known: str) -> None:
    """`--set index.flips=on` is true before it comes here."""
    assert IndexParameters.model_validate({"flips": given}).flips == known


def test_a_table_may_be_named_itself(tmp_path):
    root = lay(tmp_path / "data", LEFT_RIGHT)
    rows = ["left/0.mp4,l,train", f"{root}/left/1.mp4,l,test", "right/0.mp4,r,train", "right/1.mp4,r,test"]
    listing = read(write_table(root / "some.csv", rows))
    assert (listing.layout, len(listing.entries)) == ("csv", 4)


def test_absolute_paths_may_lead_through_a_link(tmp_path):
    lay(tmp_path / "disk", LEFT_RIGHT)
    (tmp_path / "data").symlink_to("disk")
    names = [("left/0", "l,train"), ("left/1", "l,test"), ("right/0", "r,train"), ("right/1", "r,test")]
    rows = [f"{tmp_path}/data/{name}.mp4,{rest}" for name, rest in names]
    assert len(read(write_table(tmp_path / "data" / "some.csv", rows)).entries) == 4


def test_the_validation_rows_are_the_test_split_where_there_is_no_other(tmp_path):
    lay(tmp_path, LEFT_RIGHT[:2] + LEFT_RIGHT[8:10])
    rows = ["left/0.mp4,l,train", "left/1.mp4,l,val", "right/0.mp4,r,train", "right/1.mp4,r,validation"]
    write_table(tmp_path / "t.csv", rows)
    assert Counter(splits(read(tmp_path)).values()) == {"train": 2, "test": 2}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["left/0.mp4,l,train", "./left/0.mp4,l,test"], r"left/0.mp4 is listed twice: t.csv, line 2 and t.csv, line 3"),
        (["left/0.mp4,l,later"], "t.csv, line 2: split is 'later'"),
        (["left/0.mp4,,train"], "t.csv, line 2: no label"),
        (["left/0.mp4"], "t.csv, line 2: no label and no split"),
        (["../../left/0.mp4,l,train"], "lies outside .*: put the table into a folder above"),
        (["left/99.mp4,l,train"], "none of the 1 listed videos lies below .*; the first is 'left/99.mp4'"),
        ([], "name no videos"),
        (["left/0.mp4,l,train", "right/0.mp4,r,test"], "class 'r' of .* has test videos but no training videos"),
        (["left/0.mp4,l,train", "right/0.mp4,r,train"], "has no test videos: add some, or set holdout"),
        (["left/0.mp4,l,train", "left/1.mp4,l,test"], "only one class"),
    ],
)
def test_tables_that_make_no_sense_are_errors(tmp_path, rows, message):
    with pytest.raises(RequestError, match=message):
        read(write_table(lay(tmp_path, LEFT_RIGHT) / "t.csv", rows))


def test_a_class_without_training_videos_is_told_which_files_are_missing(tmp_path):
    rows = ["l/9.mp4,l,train", "left/1.mp4,l,test", "right/0.mp4,r,train", "right/1.mp4,r,test"]
    with pytest.raises(RequestError, match=r"'l' .* no training videos \(1 listed and missing; the first is l/9.mp4"):
        read(write_table(lay(tmp_path, LEFT_RIGHT) / "t.csv", rows))


@pytest.mark.parametrize(
    ("name", "header", "said"),
    [
        ("split.csv", "file,class,split", r"split\.csv tells a split in no form .* it has file, class, split\."),
        ("splits/videos.csv", "name,class,split", "it has name, class, split"),
        ("train.csv", "path;label", "it has path;label"),
        ("videos.csv", 'path;label;"split"', "it has path;label;"),
        ("videos.tsv", "path\tlabel\tsplit", r"videos\.tsv tells a split in no form"),
        ("split.tsv", "left/0.mp4", r"split\.tsv tells a split in no form"),
        ("test.txt", "left/0.mp4", r"test\.txt .* or the lists of UCF101"),
        ("annotations/val.json", "[]", r"val\.json"),
    ],
)
def test_a_split_that_is_not_understood_is_not_passed_over(tmp_path, name, header, said):
    """A split of our own in its place would be scored on the user's training videos."""
    write_table(lay(tmp_path, LEFT_RIGHT) / name, ["left/0.mp4,l,test"], header)
    with pytest.raises(RequestError, match=said):
        read(tmp_path)
    assert Counter(splits(read(tmp_path, layout="folders")).values()) == {"train": 12, "test": 4}


def test_a_table_that_is_not_there_is_not_passed_over(tmp_path):
    (lay(tmp_path, LEFT_RIGHT) / "videos.csv").symlink_to("/nowhere/videos.csv")
    with pytest.raises(RequestError, match=r"videos\.csv cannot be read as CSV: No such file or directory"):
        read(tmp_path)


@pytest.mark.parametrize(("name", "content"), [("x.parquet", b"no Parquet"), ("x.csv", b'"' + b"x" * 200_000)])
def test_a_table_that_cannot_be_read_blocks_no_layout(tmp_path, name, content):
    (lay_ucf101(tmp_path / "ucf101") / name).write_bytes(content)
    assert read(tmp_path / "ucf101").layout == read(tmp_path / "ucf101", layout="ucf101").layout == "ucf101"
    table = lay(tmp_path / "folders", LEFT_RIGHT) / name
    table.write_bytes(content)
    assert f"{name} cannot be read as a table and is passed over" in read(tmp_path / "folders").notes
    with pytest.raises(RequestError, match=r"x\.(csv cannot be read as CSV|parquet is)"):
        read(table)


def test_other_lists_and_those_beside_train_and_test_folders_are_passed_over(tmp_path):
    write_table(lay(tmp_path / "a", LEFT_RIGHT) / "notes.csv", ["1"], header="path,label")
    (tmp_path / "a" / "boxes.json").write_text("{}")
    assert len(read(tmp_path / "a").entries) == 16
    sides = [f"{side}/{path}" for side in ("train", "test") for path in LEFT_RIGHT]
    write_table(lay(tmp_path / "b", sides) / "split.csv", ["1"], header="path;split")
    assert len(read(tmp_path / "b").entries) == 32


def test_a_group_on_both_sides_is_a_note(tmp_path):
    names = [f"{label}_g01_c{clip:02d}.mp4" for label in "ab" for clip in (1, 2)]
    rows = [f"{name},{name[0]},{split}" for name, split in zip(names, ("train", "test") * 2, strict=True)]
    write_table(lay(tmp_path, names) / "t.csv", rows)
    (note,) = read(tmp_path).notes
    assert note == "2 groups stand on both sides of the split, so its scores flatter (the first: a_g01)"


def test_a_table_may_tell_what_videos_were_cut_from(tmp_path):
    names = [f"{label}{clip}.mp4" for label in "ab" for clip in range(12)]
    rows = [f"{name},{name[0]},train,film {int(name[1:-4]) // 4 or ''}" for name in names]
    write_table(lay(tmp_path, names) / "t.csv", rows, "path,label,split,Group")
    listing = read(tmp_path, holdout=True)
    assert units(listing, "test") | units(listing, "train") == {"film", "film 1", "film 2"}
    assert not units(listing, "test") & units(listing, "train")


def test_of_a_table_that_tells_groups_alone_the_test_is_drawn_by_them(tmp_path):
    names = [f"{label}{clip}.mp4" for label in "ab" for clip in range(12)]
    rows = [f"{name},{name[0]},film {int(name[1:-4]) // 3}" for name in names]
    table = write_table(lay(tmp_path, names) / "t.csv", rows, "path,label,group")
    listing = read(tmp_path)
    assert (listing.layout, listing.classes) == ("csv", ("a", "b"))
    assert len(units(listing, "test")) == 1
    assert not units(listing, "test") & units(listing, "train")
    (note,) = listing.notes
    assert note.startswith(
        "a table without a split: the test split is 6 of 24 videos, drawn with seed 0 in whole groups"
    )
    assert len(units(read(table, test_fraction=0.5), "test")) == 2
    assert set(splits(read(tmp_path, test_only=True)).values()) == {"test"}


def test_two_tables_are_a_question_that_naming_one_answers(tmp_path):
    rows = ["left/0.mp4,l,train", "left/1.mp4,l,test", "right/0.mp4,r,train", "right/1.mp4,r,test"]
    root = lay(tmp_path, LEFT_RIGHT)
    write_table(root / "a.csv", rows)
    write_table(root / "splits/b.csv", rows)
    write_table(root / "other.csv", ["1,2"], header="x,y")
    with pytest.raises(RequestError, match=r"2 tables of videos: name one of .*a\.csv, .*b\.csv itself"):
        read(root)
    assert len(read(root / "a.csv").entries) == 4


def test_a_table_without_the_columns_is_an_error(tmp_path):
    table = write_table(lay(tmp_path, LEFT_RIGHT) / "t.csv", ["left/0.mp4,l"], header="file,label")
    with pytest.raises(RequestError, match="needs the columns path,label,split"):
        read(table)
    with pytest.raises(RequestError, match="has no CSV or Parquet table"):
        read(tmp_path, layout="csv")


def test_parquet_is_read_or_says_what_it_needs(tmp_path):
    table = lay(tmp_path, LEFT_RIGHT) / "t.parquet"
    if importlib.util.find_spec("pyarrow") is None:
        table.write_bytes(b"PAR1")
        with pytest.raises(RequestError, match="install pyarrow"):
            read(table)
        return
    pyarrow = importlib.import_module("pyarrow")
    rows = [
        {"path": path, "label": path.split("/")[0], "split": "test" if "7" in path else "train"} for path in LEFT_RIGHT
    ]
    importlib.import_module("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), table)
    assert Counter(splits(read(table)).values()) == {"train": 14, "test": 2}


def test_miniucf_names_videos_without_folder_and_extension(tmp_path):
    labels = [f"C{number:02d}" for number in reversed(range(50))]
    names = [f"v_{label}_g{group:02d}_c01" for label in labels for group in (1, 2)]
    lay(tmp_path, [f"UCF-101/{name.split('_')[1]}/{name}.avi" for name in names])
    rows = [f"{name},{name.split('_')[1]},{'test' if '_g01_' in name else 'train'}" for name in names]
    write_table(tmp_path / "miniucf.csv", rows, header="folder_name,label,split")
    listing = read(tmp_path)
    assert (listing.layout, listing.flips, listing.classes) == ("csv", True, tuple(sorted(labels)))
    assert splits(listing)["UCF-101/C00/v_C00_g01_c01.avi"] == "test"
    assert Counter(splits(listing).values()) == {"train": 50, "test": 50}


def test_a_listed_name_that_fits_two_files_is_an_error(tmp_path):
    lay(tmp_path, ["x/a.mp4", "y/a.mp4", "x/b.mp4"])
    write_table(tmp_path / "t.csv", ["a,x,train", "b,y,train"], header="folder_name,label,split")
    with pytest.raises(RequestError, match=r"the lists name 'a', and 2 files fit: x/a\.mp4, y/a\.mp4"):
        read(tmp_path)


# --- HMDB51, Kinetics, Something-Something ------------------------------------------------------------------------


def test_hmdb51_has_its_official_splits_and_groups_by_film(tmp_path):
    for label in ("shoot_bow", "climb"):
        names = [f"{film}_{label}_f_nm_np1_fr_med_{take}.avi" for film in ("A film!", "B_film", "C") for take in (0, 1)]
        lay(tmp_path, [f"{label}/{name}" for name in names])
        (tmp_path / "splits").mkdir(exist_ok=True)
        lines = [f"{name} {side} " for name, side in zip(names, (1, 1, 2, 2, 0, 0), strict=True)]
        (tmp_path / f"splits/{label}_test_split2.txt").write_text("\n".join(lines))
    listing = read(tmp_path, split=2)
    assert (listing.layout, listing.classes, listing.flips) == ("hmdb51", ("climb", "shoot_bow"), True)
    assert Counter(splits(listing).values()) == {"train": 4, "test": 4}
    assert "climb/A film!_climb" in units(listing, "train")
    assert set(reasons(listing).values()) == {"on neither side of official split 2"}
    with pytest.raises(RequestError, match="has no list for split 1, only for 2"):
        read(tmp_path)


def test_kinetics_is_scored_on_its_validation_split(tmp_path):
    lay(tmp_path, ["train/a b/AAA_000001_000011.mp4", "train/c/-BB.mp4", "val/CCC_000000_000010.mp4", "val/DDD.mkv"])
    header = "label,youtube_id,time_start,time_end,split"
    train = ["a b,AAA,1,11,train", "c,-BB,3,13,train", "c,GONE,0,10,train"]
    write_table(tmp_path / "annotations/train.csv", train, header=header)
    write_table(tmp_path / "annotations/val.csv", ["a b,CCC,0,10,val", "c,DDD,0,10,val"], header=header)
    write_table(tmp_path / "annotations/test.csv", ["EEE,0,10,test"], header="youtube_id,time_start,time_end,split")
    listing = read(tmp_path)
    assert (listing.layout, listing.flips, listing.classes) == ("kinetics", True, ("a b", "c"))
    assert splits(listing) == {
        "train/a b/AAA_000001_000011.mp4": "train",
        "train/c/-BB.mp4": "train",
        "val/CCC_000000_000010.mp4": "test",
        "val/DDD.mkv": "test",
    }
    gone = {"GONE_000000_000010": "listed (train.csv, line 4) but not there"}
    assert reasons(listing) == gone
    lay(tmp_path, ["test/EEE.mp4"])
    write_table(tmp_path / "annotations/test.csv", ["c,EEE,0,10,test", "a b,FFF,0,10,test"], header=header)
    more = read(tmp_path)  # as the copies of today have it, with labels
    assert splits(more) == splits(listing)
    unused = "in the test split; the validation split is the one that is scored"
    assert reasons(more) == gone | {"test/EEE.mp4": unused}
    write_table(tmp_path / "annotations/val.csv", [], header=header)
    assert {path for path, side in splits(read(tmp_path)).items() if side == "test"} == {"test/EEE.mp4"}


def test_flat_files_that_class_folders_link_to_are_found_once(tmp_path):
    """As the foundation that gives Kinetics arranges it by classes."""
    names = {"AAA": "train", "BBB": "train", "CCC": "val", "DDD": "val"}
    lay(tmp_path, [f"{side}/{name}_000000_000010.mp4" for name, side in names.items()])
    rows = [f"{label},{name},0,10,{side}" for label, (name, side) in zip("abab", names.items(), strict=True)]
    for label, (name, side) in zip("abab", names.items(), strict=True):
        (tmp_path / side / label).mkdir(exist_ok=True)
        (tmp_path / side / label / f"{name}_000000_000010.mp4").symlink_to(f"../{name}_000000_000010.mp4")
    write_table(tmp_path / "all.csv", rows, header=KINETICS)
    assert sorted(splits(read(tmp_path))) == [f"{side}/{name}_000000_000010.mp4" for name, side in names.items()]
    (tmp_path / "train/b/AAA_000000_000010.mp4").write_bytes(b"another")
    with pytest.raises(RequestError, match=r"2 files fit: train/AAA_000000_000010\.mp4, train/b/AAA"):
        read(tmp_path)


def write_ssv2(folder: Path) -> dict[str, str]:
    """Videos 0 and 1 for training, 2 and 3 for test; the numbers of the classes."""
    labels = {"Pushing something from right to left": "0", "Holding something": "1"}
    templates = ["Pushing [something] from right to left", "Holding [something]"]
    files = {
        "labels": labels,
        "train": [{"id": str(number), "template": templates[number]} for number in (0, 1)],
        "validation": [{"id": str(number), "template": templates[number - 2]} for number in (2, 3)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"something-something-v2-{name}.json").write_text(json.dumps(content))
    return labels


def test_something_something_has_its_own_class_order_and_no_flips(tmp_path):
    lay(tmp_path, [f"20bn-something-something-v2/{number}.webm" for number in range(5)])
    labels = write_ssv2(tmp_path)
    listing = read(tmp_path)
    assert (listing.layout, listing.flips, listing.classes) == ("ssv2", False, tuple(labels))
    assert [entry.split for entry in listing.entries] == ["train", "train", "test", "test"]
    assert reasons(listing) == {"20bn-something-something-v2/4.webm": "in none of the lists"}


KINETICS = "label,youtube_id,time_start,time_end,split"


@pytest.mark.parametrize("stray", ["boxes.json", "notes.csv", "labels.json", "splits/train.csv", "trainlist.txt"])
def test_a_file_of_another_kind_hides_no_lists(tmp_path, stray):
    """Neither beside the lists nor in a folder that is looked into before theirs."""
    kinetics = lay(tmp_path / "kinetics", [f"x/{label}{number}.mp4" for label in "ab" for number in (1, 2)])
    ssv2 = lay(tmp_path / "ssv2", [f"x/{number}.webm" for number in range(4)])
    rows = [f"{label},{label}{number},,,{side}" for label in "ab" for number, side in ((1, "train"), (2, "val"))]
    write_table(kinetics / "annotations/kinetics.csv", rows, header=KINETICS)
    write_ssv2(ssv2 / "labels")
    for root, layout, flips in ((kinetics, "kinetics", True), (ssv2, "ssv2", False)):
        write_table(root / stray, ["left/0.mp4,l"], header="path,label")
        listing = read(root)
        assert (listing.layout, listing.flips, len(listing.entries)) == (layout, flips, 4)


# --- choices and errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ucf101", "hmdb51", "kinetics", "miniucf", "mine"])
def test_flips_follow_from_lists_and_not_from_a_folder_s_name(tmp_path, name):
    """A mirrored `left` is a `right`, whatever their folder is called."""
    root = lay(tmp_path / name, LEFT_RIGHT)
    assert not read(root).flips
    rows = ["left/0.mp4,l,train", "left/1.mp4,l,test", "right/0.mp4,r,train", "right/1.mp4,r,test"]
    assert not read(write_table(root / "t.csv", rows)).flips
    assert read(lay_ucf101(tmp_path / "lists" / name)).flips
    lay(tmp_path / "names" / name, [f"{number}.mp4" for number in range(4)])
    rows = ["0,l,train", "1,l,test", "2,r,train", "3,r,test"]
    assert not read(write_table(tmp_path / "names" / name / "t.csv", rows, header="folder_name,label,split")).flips


def test_flips_can_be_forced(tmp_path):
    root = lay(tmp_path, LEFT_RIGHT)
    assert read(root, flips="on").flips
    assert not read(lay_ucf101(tmp_path / "ucf"), flips="off").flips


def test_a_layout_that_was_named_is_taken_and_one_that_also_fits_is_noted(tmp_path):
    root = lay_ucf101(tmp_path)
    rows = ["a/v_a_g01_c01.avi,a,train", "a/v_a_g02_c01.avi,a,test", "b/v_b_g01_c01.avi,b,train"]
    write_table(root / "t.csv", rows)
    assert read(root).notes == ("read as ucf101; layout csv would fit too",)
    assert len(read(root, layout="csv").entries) == 3
    assert read(root, layout="folders").layout == "folders"
    with pytest.raises(RequestError, match="has no hmdb51 lists"):
        read(root, layout="hmdb51")


def test_ucf101_without_lists_is_told_where_they_go(tmp_path):
    root = lay_ucf101(tmp_path)
    for path in root.glob("*.txt"):
        path.unlink()
    (note,) = read(root).notes
    assert note.endswith("(the names are UCF101's: its official lists go into splits/)")


@pytest.mark.parametrize(
    ("paths", "parameters", "message"),
    [
        ([], {}, "is empty: name a folder that holds videos"),
        (
            ["a/1.txt", "a/2.doc"],
            {},
            r"holds no videos \(1 × not a video file \(.txt\), 1 × not a video file \(.doc\)\)",
        ),
        (["1.mp4", "2.mp4"], {}, "the videos lie in .* itself: put each class in its own folder"),
        (["x/y/z/1.mp4"], {}, "holds no class folders with videos .*: name .*/x/y, or the like, instead"),
        (["a/1.mp4", "a/2.mp4"], {}, r"has only one class \(a\)"),
        (["train/1.mp4", "val/2.mp4"], {}, r"no video of .* lies in train/<class>/ or val/<class>/ .*train/1\.mp4"),
        (["a/1.mp4", "b/1.mp4", "b/2.mp4"], {}, r"class 'a' has one training video or group \(a/1.mp4\)"),
        (["a/x_g1_c1.mp4", "a/x_g1_c2.mp4", "b/1.mp4", "b/2.mp4"], {}, r"class 'a' has one .* group \(a_g1\)"),
        (["train/a/1.mp4", "train/b/2.mp4", "test/c/3.mp4"], {}, "class 'c' of .* has test videos but no training"),
        (LEFT_RIGHT, {"split": 2}, "read as folders, which has one split: leave split 2 out .* are 1 to 3"),
        (LEFT_RIGHT, {"layout": "ucf101"}, "has no ucf101 lists .*put the official split files there"),
        (LEFT_RIGHT, {"layout": "ssv2"}, "has no Something-Something v2 JSON for labels, train, validation"),
        (LEFT_RIGHT, {"layout": "kinetics"}, "has no table with Kinetics' columns label,youtube_id"),
    ],
)
def test_requests_that_cannot_be_met_say_why(tmp_path, paths, parameters, message):
    with pytest.raises(RequestError, match=message):
        read(lay(tmp_path, paths), **parameters)


def test_a_root_that_is_no_folder_says_so(tmp_path):
    lay(tmp_path, ["a.mp4"])
    with pytest.raises(RequestError, match="does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(RequestError, match=r"a\.mp4 is a file: name the folder"):
        read(tmp_path / "a.mp4")
    with pytest.raises(RequestError, match="is a table: for layout ucf101 name its folder"):
        read(write_table(tmp_path / "t.csv", []), layout="ucf101")


@pytest.fixture
def official(data_root):
    """The real split files, which are no part of the project."""
    found = data_root.parent / "splits"
    if not found.is_dir():
        pytest.skip(f"no official split files at {found}")
    return found


def names_in(path):
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]


@pytest.mark.parametrize(("split", "train", "test"), [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)])
def test_all_of_ucf101_has_its_published_counts(tmp_path, official, split, train, test):
    lists = official / "ucf101"
    videos = [name for kind in ("train", "test") for name in names_in(lists / f"{kind}list01.txt")]
    lay(tmp_path, [f"UCF-101/{video}" for video in videos])
    shutil.copytree(lists, tmp_path / "ucfTrainTestlist")
    listing = read(tmp_path, split=split)
    assert Counter(splits(listing).values()) == {"train": train, "test": test}
    assert (len(listing.classes), listing.flips) == (101, True)
    groups = {kind: units(listing, kind) for kind in ("train", "test")}
    assert not set(groups["train"]) & set(groups["test"])


def test_all_of_miniucf_has_its_published_counts(tmp_path, official):
    table = official / "miniucf_splits1.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    lay(tmp_path, [f"UCF-101/{label}/{name}.avi" for name, label, _ in rows])
    shutil.copy(table, tmp_path)
    listing = read(tmp_path)
    assert Counter(splits(listing).values()) == {"train": 4662, "test": 1861}
    assert (len(listing.classes), listing.flips) == (50, True)


@pytest.mark.parametrize(("layout", "train"), [("hmdb51", 3570), ("hmdb51_5236", 5236)])
def test_all_of_hmdb51_has_its_published_counts(tmp_path, official, layout, train):
    lists = sorted((official / "hmdb51").glob("*_test_split1.txt"))
    for path in lists:
        label = path.stem.removesuffix("_test_split1")
        lay(tmp_path, [f"{label}/{line.rsplit(None, 1)[0]}" for line in path.read_text().splitlines() if line.strip()])
    shutil.copytree(official / "hmdb51", tmp_path / "splits")
    listing = read(tmp_path, layout=layout)
    assert Counter(splits(listing).values()) == {"train": train, "test": 1530}
    assert (len(listing.classes), listing.flips) == (51, True)


def test_missing_videos_of_kinetics_are_counted(tmp_path, official):
    labels = (official / "labels" / "kinetics400.txt").read_text().splitlines()
    assert len(labels) == 400
    rows = [f"{label},{number:03d}{side}abcdefg,{number},{number + 10},{side}" for number, label in enumerate(labels)
            for side in ("train", "validate")]  # fmt: skip
    write_table(tmp_path / "kinetics400.csv", rows, header="label,youtube_id,time_start,time_end,split")
    kept = [f"{side}/{label}/{number:03d}{side}abcdefg_{number:06d}_{number + 10:06d}.mp4"
            for number, label in enumerate(labels) for side in ("train", "validate")
            if side == "train" or number % 10]  # fmt: skip
    lay(tmp_path, kept)
    listing = read(tmp_path)
    assert Counter(splits(listing).values()) == {"train": 400, "test": 360}
    missing = [one for one in listing.rejected if one.outcome == "failed"]
    assert len(missing) == 40
    assert all("but not there" in one.reason for one in missing)


def test_something_something_takes_its_real_labels(tmp_path, official):
    labels = (official / "labels" / "ssv2.txt").read_text().splitlines()
    assert len(labels) == 174
    numbers = {label: str(number) for number, label in enumerate(labels)}
    lay(tmp_path, [f"20bn-something-something-v2/{number}.webm" for number in range(348)])
    record = [{"id": str(number), "template": labels[number % 174]} for number in range(348)]
    for name, content in (("train", record[:174]), ("validation", record[174:]), ("labels", numbers)):
        (tmp_path / f"something-something-v2-{name}.json").write_text(json.dumps(content))
    listing = read(tmp_path)
    assert (listing.layout, listing.classes, listing.flips) == ("ssv2", tuple(labels), False)
    assert Counter(splits(listing).values()) == {"train": 174, "test": 174}
