"""Tensors come back bit for bit and as they lay in memory; what is damaged is never taken for whole."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat_lightning.training.teacher_cache.tensor_files import DamagedError, read_tensors, write_tensors

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64]


@st.composite
def views(draw):
    """A tensor as models make them: axes changed about, one cut out of a larger one, one row for all."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    tensor = torch.randn(
        [2 * size for size in shape], generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))
    )
    tensor = (100 * tensor).to(draw(st.sampled_from(DTYPES)))
    cut = [slice(draw(st.integers(0, 1)), None, draw(st.integers(1, 2))) for _ in shape]
    return tensor[tuple(cut)].permute(draw(st.permutations(range(len(shape)))))


@given(st.lists(views(), max_size=3))
def test_tensors_come_back_as_they_lay(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("kept") / "a"
    write_tensors(path, tensors)
    back = read_tensors(path)
    assert [tensor.dtype for tensor in back] == [tensor.dtype for tensor in tensors]
    for one, other in zip(back, tensors, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


def test_numbers_that_are_none_and_zeros_of_both_signs_come_back(tmp_path):
    given = torch.tensor([float("nan"), -0.0, float("-inf"), 1e-45])
    write_tensors(tmp_path / "a", [given])
    assert read_tensors(tmp_path / "a")[0].view(torch.int32).tolist() == given.view(torch.int32).tolist()


def test_one_row_for_all_and_no_numbers_at_all_come_back(tmp_path):
    given = [torch.arange(3.0).expand(2, 3), torch.empty(0, 4), torch.tensor(7)]
    write_tensors(tmp_path / "a", given)
    back = read_tensors(tmp_path / "a")
    assert all(torch.equal(one, other) for one, other in zip(back, given, strict=True))
    back[0][0, 0] = 9  # memory of its own, each element with a place
    assert back[0].tolist() == [[9, 1, 2], [0, 1, 2]]


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_changed_bit_is_taken_for_another_number(tmp_path_factory, place, bit):
    path = tmp_path_factory.mktemp("kept") / "a"
    tensors = [torch.arange(6.0).view(2, 3), torch.ones(2, dtype=torch.bfloat16)]
    write_tensors(path, tensors)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        back = read_tensors(path)
    except DamagedError:
        return
    for one, other in zip(back, tensors, strict=True):  # a blank between header and numbers
        assert torch.equal(one, other)
        assert (one.dtype, one.stride()) == (other.dtype, other.stride())


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_the_end_is_missed(tmp_path, left):
    write_tensors(tmp_path / "a", [torch.arange(6.0)])
    content = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(content[:left])
    with pytest.raises(DamagedError):
        read_tensors(tmp_path / "a")


def test_a_file_of_somebody_else_is_damaged_and_no_file_is_none(tmp_path):
    (tmp_path / "a").write_text("hello, this is no tensor at all")
    with pytest.raises(DamagedError):
        read_tensors(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "b")


def test_many_may_write_the_same_file_at_once(tmp_path):
    tensor, wrong = torch.arange(50_000.0), []

    def write():
        for _ in range(10):
            write_tensors(tmp_path / "a", [tensor])
            if not torch.equal(read_tensors(tmp_path / "a")[0], tensor):
                wrong.append("other numbers")

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(flat, place, facts):
        place.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qat_lightning.training.teacher_cache.tensor_files.save_file", full)
    with pytest.raises(OSError, match="No space"):
        write_tensors(tmp_path / "a", [torch.ones(2)])
    assert list(tmp_path.iterdir()) == []
