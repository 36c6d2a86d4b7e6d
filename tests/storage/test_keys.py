from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidistill.storage.keys import KEY_LENGTH, canonical, digest, file_digest
from vidistill.storage.parameters import Parameters

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


@given(values)
def test_canonical_json_reads_back_as_the_value(value):
    """Different values therefore have different JSON: nothing is folded together."""
    assert repr(json.loads(canonical(value))) == repr(sorted_dicts(value))


def sorted_dicts(value):
    if isinstance(value, dict):
        return {name: sorted_dicts(value[name]) for name in sorted(value)}
    return [sorted_dicts(item) for item in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(), scalars, max_size=6), st.randoms())
def test_the_order_of_a_dict_does_not_matter(value, random):
    names = list(value)
    random.shuffle(names)
    assert canonical({name: value[name] for name in names}) == canonical(value)


@given(st.lists(st.text(), unique=True), st.randoms())
def test_the_order_of_a_set_does_not_matter(items, random):
    expected = canonical(sorted(items))
    random.shuffle(items)
    assert canonical(set(items)) == canonical(frozenset(items)) == expected


def test_a_tuple_is_a_list_at_any_depth():
    assert canonical(((1, 2), {"a": (3,)})) == canonical([[1, 2], {"a": [3]}]) == '[[1,2],{"a":[3]}]'


@pytest.mark.parametrize(
    ("one", "other"), [(1, 1.0), (1, True), (0, False), (1, "1"), (None, "null"), ([], {}), ("", None)]
)
def test_values_that_look_alike_have_keys_of_their_own(one, other):
    assert digest(one) != digest(other)


@pytest.mark.parametrize(
    "value", [np.zeros(2), np.int64(1), b"12", bytearray(b"12"), PurePosixPath("a"), object(), 1j, lambda: 0]
)
def test_what_json_does_not_know_is_refused(value):
    with pytest.raises(TypeError):
        canonical({"value": value})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_know_are_refused(value):
    with pytest.raises(ValueError, match="JSON"):
        canonical(value)


class Model(Parameters):
    rate: float = 1
    names: tuple[str, ...] = ("b", "a")


def test_a_model_is_its_fields():
    assert canonical(Model()) == canonical({"names": ["b", "a"], "rate": 1.0}) == '{"names":["b","a"],"rate":1.0}'


SCRIPT = """
from vidistill.storage.keys import digest
print(digest({"words": {"walk", "run", "jump", "clap", "wave"}, "rate": 0.1, "sizes": (1, 2), "name": "Füße"}))
"""


def test_a_key_is_the_same_in_every_process():
    def key(seed: str) -> str:
        found = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        return found.stdout.decode().strip()

    keys = {key(seed) for seed in ("0", "1", "2", "random")}
    assert [len(key) for key in keys] == [KEY_LENGTH]


def test_a_key_is_the_same_in_every_year():
    """Written down: were this to change, every store in the world would be made again."""
    assert digest(["teacher", 1, {"lr": 0.01, "seed": 0}, {"clips": ["clips/abc"]}]) == "1c3dd631bf1a69fff66b7bb5"


def test_the_digest_of_a_file_is_that_of_its_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
