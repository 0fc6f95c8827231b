"""Weights in safetensors files (minigrad/weights.py)."""

import contextlib
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import minigrad.weights
from minigrad import load_weights, nn, save_weights


def network():
    return nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


def encode(header, body, length=None):
    """The bytes of a safetensors file: the header's length in eight bytes, the header as JSON, the arrays."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


HEADER = {
    "weight": {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]},
    "bias": {"dtype": "F32", "shape": [3], "data_offsets": [24, 36]},
}
BODY = np.arange(9, dtype="<f4").tobytes()
GOOD = encode(HEADER, BODY)


def with_bias(**changes):
    return encode({**HEADER, "bias": {**HEADER["bias"], **changes}}, BODY)


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path):
    first, second = network(), network()
    first[1].num_batches_tracked.data += 7
    save_weights(first, tmp_path / "net.safetensors")
    assert load_weights(second, str(tmp_path / "net.safetensors")) == ([], [])
    for name, value in first.state_dict().items():
        assert_array_equal(second.state_dict()[name], value)
        assert second.state_dict()[name].dtype == value.dtype


def test_a_runs_state_is_read_without_its_momentum(tmp_path):
    """Averaged weights, with which it was evaluated, go before the others; unknown names are still refused."""
    trained = nn.Linear(2, 3)
    arrays = trained.state_dict()
    state = {**arrays, "velocity:weight": np.ones((3, 2), np.float32)}
    path, layer = tmp_path / "last.safetensors", nn.Linear(2, 3)
    safetensors.numpy.save_file(state, path)
    assert load_weights(layer, path) == ([], [])
    assert_array_equal(layer.weight.numpy(), trained.weight.numpy())
    safetensors.numpy.save_file({**state, **{f"average:{name}": a + 1 for name, a in arrays.items()}}, path)
    assert load_weights(layer, path) == ([], [])
    assert_array_equal(layer.weight.numpy(), trained.weight.numpy() + 1)
    safetensors.numpy.save_file({**state, "more": np.ones(1)}, path)
    with pytest.raises(ValueError, match=r"unexpected: more$"):
        load_weights(layer, path)


def test_the_file_is_one_that_safetensors_itself_reads(tmp_path):
    net = network()
    save_weights(net, tmp_path / "net.safetensors")
    arrays = safetensors.numpy.load_file(tmp_path / "net.safetensors")
    assert list(net.state_dict()) != []
    assert arrays.keys() == net.state_dict().keys()
    for name, value in arrays.items():
        assert_array_equal(value, net.state_dict()[name])


@pytest.mark.parametrize("arrange", [np.asfortranarray, lambda w: w[::-1], lambda w: np.repeat(w, 2, axis=1)[:, ::2]])
def test_the_order_in_memory_does_not_matter(tmp_path, arrange):
    """safetensors writes an array's memory as it lies, so it must lie in row-major order."""
    first, second = nn.Linear(2, 3), nn.Linear(2, 3)
    first.weight.data = arrange(first.weight.data)
    save_weights(first, tmp_path / "net.safetensors")
    load_weights(second, tmp_path / "net.safetensors")
    assert_array_equal(second.weight.data, first.weight.data)


@pytest.mark.parametrize(("dtype", "size"), [("F64", 8), ("F16", 2), ("BF16", 2)])
def test_other_precisions_are_converted(tmp_path, dtype, size):
    values = np.array([0.5, -1.0, 2.0, 3.0, 0.0, 1.5, -0.25, 8.0, 1.0])  # exact in every format
    if dtype == "BF16":
        body = (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    else:
        body = values.astype(f"<f{size}").tobytes()
    header = {
        "weight": {"dtype": dtype, "shape": [3, 2], "data_offsets": [0, 6 * size]},
        "bias": {"dtype": dtype, "shape": [3], "data_offsets": [6 * size, 9 * size]},
    }
    (tmp_path / "half.safetensors").write_bytes(encode(header, body))
    layer = nn.Linear(2, 3)
    load_weights(layer, tmp_path / "half.safetensors")
    assert_array_equal(layer.weight.data.ravel(), values[:6])
    assert_array_equal(layer.bias.data, values[6:])
    assert layer.weight.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_counters_that_were_converted_with_the_weights_are_passed_over(tmp_path, dtype):
    """As `{name: t.half() for name, t in state.items()}` does it; in half precision 100,000 steps are infinite."""
    first, second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    second.num_batches_tracked.data += 7
    with np.errstate(over="ignore"):
        state = {**first.state_dict(), "bias": np.full(3, 0.5), "num_batches_tracked": np.array(1e5)}
        safetensors.numpy.save_file(
            {name: array.astype(dtype) for name, array in state.items()}, tmp_path / "half.safetensors"
        )
    load_weights(second, tmp_path / "half.safetensors")
    assert second.bias.data.tolist() == [0.5, 0.5, 0.5]
    assert second.num_batches_tracked.item() == 7


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path):
    """Who may write to /dev had a file in the place of /dev/null after `--json /dev/null`."""
    pipe, layer = tmp_path / "pipe", nn.Linear(3, 2)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        save_weights(layer, pipe)
        assert os.read(reader, 1 << 16) == safetensors.numpy.save(layer.state_dict())
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    with pytest.raises(IsADirectoryError):
        save_weights(layer, tmp_path)


FOREIGN = {
    "nothing": (b"", "not a complete safetensors file"),
    "a web page": (b"<!DOCTYPE html><html>503</html>", "not a complete safetensors file"),
    "an archive": (b"PK\x03\x04" + bytes(100), "not a complete safetensors file"),
    "a pickle": (b"\x80\x04\x95" + bytes(60) + b"cos\nsystem\n", "not a complete safetensors file"),
    "the end missing": (GOOD[:-1], "not a complete safetensors file"),
    "the header missing": (GOOD[:20], "not a complete safetensors file"),
    "bytes too many": (GOOD + b"x", "not a complete safetensors file"),
    "a header of 4 EiB": (encode(HEADER, BODY, 2**62), "not a complete safetensors file: .*header too large"),
    "no JSON": (encode(b'{"weight": ', BODY), "not a complete safetensors file: .*invalid JSON"),
    "overlapping arrays": (with_bias(data_offsets=[0, 12]), "not a complete safetensors file: .*invalid offset"),
    "a shape that overflows": (with_bias(shape=[2**62, 8]), "not a complete safetensors file: .*overflow"),
    "a negative size": (with_bias(shape=[-3]), "not a complete safetensors file"),
    "offsets beyond the file": (with_bias(data_offsets=[24, 48]), "not a complete safetensors file"),
    "an unknown type": (with_bias(dtype="F33"), "not a complete safetensors file: .*unknown variant `F33`"),
    "complex numbers": (
        encode({"weight": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)),
        "weight is of type C64, which cannot be read",
    ),
    "a name twice": (
        encode(json.dumps(HEADER).encode()[:-1] + b', "bias": ' + json.dumps(HEADER["bias"]).encode() + b"}", BODY),
        "has two arrays of the name bias",
    ),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_file_that_is_damaged_or_something_else_is_named_and_changes_nothing(tmp_path, what):
    content, sentence = FOREIGN[what]
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    layer = nn.Linear(2, 3)
    before = layer.state_dict()
    with pytest.raises(ValueError, match=rf"damaged\.safetensors.*{sentence}"):
        load_weights(layer, path)
    for name, value in layer.state_dict().items():
        assert_array_equal(value, before[name])


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder that outlives one example of a hypothesis test."""
    return tmp_path_factory.mktemp("weights")


@settings(max_examples=300)
@given(st.data())
def test_no_damage_gets_past_the_reader(folder, data):
    """Cut anywhere or change any bytes: an error with the file's name, or weights of the right shape."""
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content))) :]
    layer = nn.Linear(2, 3)
    path = folder / "fuzzed.safetensors"
    path.write_bytes(content)
    with contextlib.suppress(ValueError, TypeError):
        load_weights(layer, path)
    assert (layer.weight.shape, layer.bias.shape) == ((3, 2), (3,))


def test_a_missing_file_or_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere"):
        load_weights(network(), tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_weights(network(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere to write net\.safetensors to"):
        save_weights(network(), tmp_path / "nowhere" / "net.safetensors")


def test_weights_of_another_network_are_refused_and_change_nothing(tmp_path):
    save_weights(nn.Linear(5, 3), tmp_path / "net.safetensors")
    layer = nn.Linear(2, 3)
    before = layer.state_dict()
    with pytest.raises(ValueError, match=r"weight has shape \(3, 5\) in the weights and \(3, 2\) in the model"):
        load_weights(layer, tmp_path / "net.safetensors")
    for name, value in layer.state_dict().items():
        assert_array_equal(value, before[name])
    net = network()
    with pytest.raises(ValueError, match=r"missing: 0\.weight, .* and 2 more; unexpected: bias, weight"):
        load_weights(net, tmp_path / "net.safetensors")
    missing, unexpected = load_weights(net, tmp_path / "net.safetensors", strict=False)
    assert "3.weight" in missing
    assert unexpected == ["bias", "weight"]


@pytest.mark.parametrize("fault", ["write", "fsync", "replace"])
def test_a_fault_while_saving_leaves_the_old_file_whole_and_no_other(tmp_path, monkeypatch, fault):
    path = tmp_path / "net.safetensors"
    save_weights(nn.Linear(2, 3), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if fault == "write":
            patch.setattr(minigrad.weights, "save", lambda state: "no bytes, so that writing fails")
        else:
            patch.setattr(os, fault, full)
        with pytest.raises((OSError, TypeError)):
            save_weights(nn.Linear(2, 3), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_the_new_file_is_flushed_before_it_takes_the_old_ones_place(tmp_path, monkeypatch):
    events = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=original: (events.append(n), f(*a))[1])
    save_weights(nn.Linear(2, 3), tmp_path / "net.safetensors")
    assert events == ["fsync", "replace", "fsync"]  # the file, the name, the folder


def test_windows_opens_no_folders(tmp_path, monkeypatch):
    def opened(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(minigrad.weights, "os", SimpleNamespace(**vars(os) | {"name": "nt", "open": opened}))
    save_weights(nn.Linear(2, 3), tmp_path / "net.safetensors")
    load_weights(nn.Linear(2, 3), tmp_path / "net.safetensors")
