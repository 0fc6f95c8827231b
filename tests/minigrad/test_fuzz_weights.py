"""Hostile weights and checkpoints: thousands of damaged and malicious files, each refused in one sentence or harmless.

The readers are `minigrad.weights.read_arrays` and `train.run.checkpoint.read`. Whatever the bytes are, they return
arrays that are no larger than the file, or raise ValueError with its name: no crash, no hang, nothing executed.
"""

import json
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from minigrad.weights import read_arrays
from train import cifar
from train.run import checkpoint

GOOD = save(
    {
        "conv1.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
        "velocity:conv1.weight": np.ones((2, 3, 2, 2), np.float32),
        "bn1.num_batches_tracked": np.array(3),
        "fc.weight": np.arange(6.0).reshape(2, 3),
    },
    metadata={checkpoint.STATE: json.dumps({"epoch": 1, "config": {"recipe": {}}}), checkpoint.CHECKSUM: "0" * 64},
)
HEADER_BYTES = 8 + int.from_bytes(GOOD[:8], "little")


def encode(header, body=b""):
    """The bytes of a safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def survive(path, content):
    """Give the readers a file; return whether they took it. Anything but arrays or a ValueError is a failure."""
    path.write_bytes(content)
    taken = True
    for read in (read_arrays, checkpoint.read):
        try:
            found = read(path)
        except ValueError as error:
            assert path.name in str(error)
            assert "\n" not in str(error)
            taken = False
        else:
            arrays = found[0] if isinstance(found, tuple) else found
            # A bfloat16 becomes twice as large as it was in the file.
            assert sum(array.nbytes for array in arrays.values()) <= 2 * len(content)
    return taken


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "hostile.safetensors"


def test_thousands_of_files_with_changed_missing_and_additional_bytes(path):
    rng = np.random.default_rng(0)
    taken = 0
    for _ in range(2500):
        content = bytearray(GOOD)
        for _ in range(rng.integers(1, 4)):
            # Half of the changes hit the header, whose bytes all mean something.
            where = int(rng.integers(0, HEADER_BYTES if rng.random() < 0.5 else len(content)))
            what = rng.integers(0, 4)
            if what == 0:
                content[where % len(content)] = rng.integers(0, 256)
            elif what == 1:
                del content[where : where + int(rng.integers(1, 20))]
            elif what == 2:
                content[where:where] = rng.bytes(int(rng.integers(1, 20)))
            else:  # a digit or a bracket is likelier to make another valid header
                content[where : where + 1] = rng.choice(list(b'0123456789[]{},:"-')).tobytes()[:1]
            if not content:
                break
        taken += survive(path, bytes(content))
    assert taken < 2500 * 0.2  # the checksum refuses what the format does not


def test_files_cut_anywhere_and_files_of_noise(path):
    rng = np.random.default_rng(1)
    for end in range(len(GOOD)):
        assert not survive(path, GOOD[:end])
    for _ in range(500):
        assert not survive(path, rng.bytes(int(rng.integers(0, 300))))


numbers = st.one_of(st.integers(-2, 40), st.sampled_from([2**31, 2**32, 2**62, 2**63 - 1, 2**64 - 1, 2**64, -1]))
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(
            ["F32", "F64", "BF16", "F16", "I64", "BOOL", "U8", "F8_E4M3", "C64", "F33", "", None, 3]
        ),
        "shape": st.one_of(st.lists(numbers, max_size=5), st.just([1] * 70), st.just([0, 2**62]), numbers, st.none()),
        "data_offsets": st.one_of(st.lists(numbers, max_size=3), st.none()),
    },
)
names = st.sampled_from(["w", "b", "velocity:w", "", "__metadata__", "\x00", "..", "ü" * 200, "fc.weight"])
headers = st.dictionaries(
    names, st.one_of(entries, st.dictionaries(st.text(max_size=5), st.text(max_size=5)), st.lists(numbers)), max_size=4
)


@settings(max_examples=500)
@given(headers, st.binary(max_size=64))
def test_headers_of_every_kind(path, header, body):
    survive(path, encode(header, body))


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from(["F32", "BF16", "U8"]), st.lists(st.integers(0, 4), max_size=3)), max_size=4))
def test_well_formed_files_are_read(path, arrays):
    """The generator can also write what is right, or the tests above would prove little."""
    header, size = {}, 0
    for i, (dtype, shape) in enumerate(arrays):
        stop = size + int(np.prod(shape, dtype=int)) * {"F32": 4, "BF16": 2, "U8": 1}[dtype]
        header[f"w{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [size, stop]}
        size = stop
    assert survive(path, encode(header, bytes(size)))
    assert [a.shape for a in read_arrays(path).values()] == [tuple(shape) for _, shape in arrays]


HOSTILE = {
    "a size of zero with a size that overflows": encode(
        {"w": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}
    ),
    "more axes than NumPy has": encode({"w": {"dtype": "U8", "shape": [1] * 70, "data_offsets": [0, 1]}}, b"x"),
    "deeply nested": encode(b'{"w": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
    "metadata that is nested": encode({"__metadata__": {"minigrad": {"epoch": 1}}}),
    "metadata that is a number": encode({"__metadata__": 7}),
    "two arrays on the same bytes": encode(
        {name: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for name in "ab"}, bytes(4)
    ),
    "a hole": encode({"w": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}, bytes(8)),
    "offsets that run backwards": encode({"w": {"dtype": "U8", "shape": [4], "data_offsets": [4, 0]}}, bytes(4)),
    "a header that claims 100 GB": (100 << 30).to_bytes(8, "little") + b"{}",
    "a header that claims 2^64 - 1 bytes": b"\xff" * 8 + b"{}",
    "an offset beyond 64 bits": encode(
        b'{"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 99999999999999999999]}}'
    ),
    "half of a character": encode(b'{"\xff\xfe": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}'),
    "a web page": b"<!doctype html><html><body>503 Service Unavailable</body></html>",
    "an empty file": b"",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused_in_one_sentence(path, what):
    assert not survive(path, HOSTILE[what])


def test_nothing_takes_more_memory_than_the_file_is_large(path):
    for content in HOSTILE.values():
        tracemalloc.start()
        survive(path, content)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 << 20


def test_a_million_bytes_of_names_do_not_hang_the_reader(path):
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    assert survive(path, encode({f"w{i}": entry for i in range(10_000)}))
    assert len(read_arrays(path)) == 10_000


class Bomb:
    """An object whose pickle would write a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("packed", [True, False])
def test_a_pickle_is_never_executed(tmp_path, capsys, packed):
    """As PyTorch writes them: a zip archive with a pickle in it, or a bare pickle."""
    payload, victim = pickle.dumps(Bomb(tmp_path / "victim")), tmp_path / "weights.pt"
    if packed:
        with zipfile.ZipFile(victim, "w") as archive:
            archive.writestr("archive/data.pkl", payload)
    else:
        victim.write_bytes(payload)
    assert not survive(victim, victim.read_bytes())
    assert cifar.main(["--evaluate", str(victim), "--model", "resnext11_2x4d_w8", "--data", "shapes"]) == cifar.FAILED
    assert f"{victim} is not a complete safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "victim").exists()
