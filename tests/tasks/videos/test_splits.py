"""Splits that are drawn here, and groups told by a file's name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidistill.storage.errors import RequestError
from vidistill.tasks.videos.layouts import Entry
from vidistill.tasks.videos.splits import group_of, move_to_test, split_notes


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=12),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 1000),
)
def test_any_split_keeps_groups_whole_both_sides_filled_and_the_share_near(sizes, fraction, seed):
    entries = [
        Entry(path=f"{group}/{clip}", label="a", split="train", group=f"g{group}")
        for group, size in enumerate(sizes)
        for clip in range(size)
    ]
    result = move_to_test(entries, fraction, seed)
    test, train = ({entry.group for entry in result if entry.split == split} for split in ("test", "train"))
    assert test
    assert train
    assert not test & train
    assert [entry.path for entry in result] == [entry.path for entry in entries]
    share = sum(entry.split == "test" for entry in result)
    assert abs(share - fraction * sum(sizes)) <= max(sizes)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("v_JumpRope_g07_c03.avi", "L_g07"),
        ("L_scene0001.mp4", "scene0001"),
        ("holiday_scene0001.mp4", None),
        ("prelinger_LetsBeGo1953_wave_u_cm_np10_ba_med_2.avi", "L/prelinger_LetsBeGo1953_wave"),
        ("holiday.mp4", None),
        ("g01_c01x.mp4", None),
    ],
)
def test_groups_are_told_by_the_name(name, group):
    assert group_of(f"L/{name}", "L") == group


def test_the_real_hmdb51_names_tell_their_film(data_root):
    groups = {group_of(f"x/{path.name}", "x") for path in (data_root / "odd" / "hmdb51").iterdir()}
    assert None not in groups
    assert len(groups) == 5


def test_a_scene_of_several_classes_is_held_out_in_all_of_them():
    entries = [
        Entry(path=f"{label}_{scene}_{clip}", label=label, split="train", group=f"scene{scene:04d}")
        for label, clips in (("left", 1), ("right", 2))
        for scene in range(20)
        for clip in range(clips)
    ]
    for seed in range(5):
        sides = {}
        for entry in move_to_test(entries, 0.2, seed):
            sides.setdefault(entry.group, set()).add(entry.split)
        assert all(len(splits) == 1 for splits in sides.values())
        assert sum(splits == {"test"} for splits in sides.values()) == 4


def test_a_group_of_several_classes_is_cut_by_none_of_them():
    def drawn(groups: dict[str, str], seed: int) -> list[Entry]:
        entries = [Entry(path=f"{label}/{group}", label=label, split="train", group=group)
                   for label, names in groups.items() for group in names]  # fmt: skip
        return move_to_test(entries, 0.2, seed)

    for seed in range(20):
        entries = drawn({"a": "XYZ", "b": "XWV"}, seed)
        assert not split_notes(entries)
        for label in "ab":
            assert {entry.split for entry in entries if entry.label == label} == {"train", "test"}
    with pytest.raises(RequestError, match=r"has no training video left, .*: set another index\.split_seed, or make"):
        drawn({"a": "XY", "b": "YZ", "c": "ZX"}, 0)
