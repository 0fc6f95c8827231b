"""Give the readers of files what coverage suggests: `python tests/tools/fuzz_readers.py -max_total_time=600 FOLDER`.

Needs atheris (`pip install atheris`). It watches which branches an input reaches, and changes the inputs that reached
new ones; FOLDER keeps them. A reader returns, or raises ValueError with one sentence that names the file; anything else
ends the fuzzer, and leaves the input that did it. The options are libFuzzer's.
"""

import sys
import tempfile
from gzip import compress
from pathlib import Path

import atheris

TESTS = Path(__file__).resolve().parents[1]
sys.path += map(str, (TESTS.parent, TESTS, TESTS / "train" / "data", TESTS / "minigrad"))  # honest files to begin with

with atheris.instrument_imports(include=["json", "tarfile", "gzip", "PIL", "train", "minigrad.weights"]):
    import test_fuzz_data as honest
    from safetensors.numpy import save
    from test_fuzz_weights import GOOD

    from minigrad.weights import read_arrays
    from train import data
    from train.data import pickled
    from train.run import checkpoint, config, series

FOLDER = Path(tempfile.mkdtemp())
FILE = FOLDER / "metrics.jsonl"
STATE = b'{"config": {"data": "x", "recipe": {"epochs": 1}}, "mean": [0, 1, 2], "size": [32, 32], "epoch": 1}'
LINE = b'{"epoch": 1, "train_error": 2.5, "test_error": 2.5, "images_per_second": 9}\n'


def with_checksum(text: bytes) -> bytes:
    """A checkpoint with any state, whose checksum is right."""
    state = text.decode(errors="replace")
    return save({}, metadata={checkpoint.STATE: state, checkpoint.CHECKSUM: checkpoint.checksum({}, state)})


READERS = [  # how an input becomes a file, what reads such files, inputs to begin with
    (bytes, lambda: (read_arrays(FILE), checkpoint.read(FILE)), [GOOD]),
    (with_checksum, lambda: config.Config.stored(checkpoint.read(FILE)[1]["config"], FILE), [STATE]),
    (bytes, lambda: honest.read_and_decode(FILE), [honest.ARCHIVE]),
    (lambda tar: compress(honest.with_checksums(tar), 1), lambda: honest.read_and_decode(FILE), [honest.TAR]),
    (honest.with_crcs, lambda: data.read_image(FILE), honest.IMAGES.values()),
    (bytes, lambda: pickled.records(FILE.read_bytes(), honest.FORMAT, "a.bin", str(FILE)), [honest.PICKLE]),
    (bytes, lambda: series.read_metrics(FOLDER), [LINE]),
]


def read(content: bytes) -> None:
    """Give an input to the reader that its first byte chooses."""
    make_file, reader, _ = READERS[content[0] % len(READERS) if content else 0]
    FILE.write_bytes(make_file(content[1:]))
    try:
        reader()
    except ValueError as error:
        if str(FOLDER) not in str(error) or "\n" in str(error):
            raise AssertionError(f"no sentence with the file's name: {error}") from error


if __name__ == "__main__":
    for number, (_, _, seeds) in enumerate(READERS):
        for i, seed in enumerate(seeds):
            Path(sys.argv[-1], f"{number}-{i}").write_bytes(bytes([number]) + seed)
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
