"""What is kept of pictures stays within its budget, or lies in files that later runs find."""

import ml_dtypes
import numpy as np

from jevomerge.fitness.kept import KeepFeatures, Kept


class Maker:
    """Makes an array, and counts how often."""

    def __init__(self, dtype="float32"):
        self.array, self.times = np.arange(250).astype(dtype), 0

    def __call__(self):
        self.times += 1
        return self.array


def test_memory_is_a_budget():
    kept, makers = Kept(KeepFeatures(memory=2.5e-6)), [Maker() for _ in range(3)]  # GB, for arrays of 1,000 bytes
    for _ in range(3):
        for i, maker in enumerate(makers):
            np.testing.assert_array_equal(kept.get(str(i), maker, "float32"), maker.array)
    assert [maker.times for maker in makers] == [1, 1, 3]
    assert 0 < Kept(KeepFeatures()).left < 1 << 50


def test_files_are_mapped_and_found_again(tmp_path):
    wanted, maker = KeepFeatures(folder=str(tmp_path / "new" / "cache")), Maker(ml_dtypes.bfloat16)
    Kept(wanted).get("a", maker, "bfloat16")
    found = Kept(wanted).get("a", maker, "bfloat16")
    assert maker.times == 1
    assert found.dtype == ml_dtypes.bfloat16
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found.view(np.uint16), maker.array.view(np.uint16))
    (file,) = (tmp_path / "new" / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:200])
    np.testing.assert_array_equal(Kept(wanted).get("a", maker, "bfloat16"), maker.array)
    assert maker.times == 2


def test_what_becomes_of_too_much_is_said():
    assert "kept in memory" in KeepFeatures(memory=1).says(10**8)
    assert "give a `features.folder`" in KeepFeatures(memory=1).says(10**10)
    assert "as files in cache" in KeepFeatures(folder="cache").says(10**10)
