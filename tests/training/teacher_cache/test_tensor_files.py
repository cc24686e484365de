"""Tensors come back with the same bits and layout; damage is detected."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat_lightning.training.teacher_cache.tensor_files import DamagedError, read_tensors, write_tensors

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64]


@st.composite
def views(draw):
    """A tensor as models make them: with permuted axes, or cut out of a larger one."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    tensor = (100 * torch.randn([2 * size for size in shape])).to(draw(st.sampled_from(DTYPES)))
    cut = [slice(draw(st.integers(0, 1)), None, draw(st.integers(1, 2))) for _ in shape]
    return tensor[tuple(cut)].permute(draw(st.permutations(range(len(shape)))))


@given(st.lists(views(), max_size=3))
def test_tensors_come_back_with_their_layout(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("stored") / "a"
    write_tensors(path, tensors)
    for one, other in zip(read_tensors(path), tensors, strict=True):
        assert torch.equal(one, other)
        assert (one.dtype, one.stride()) == (other.dtype, other.stride())


def test_special_tensors_come_back(tmp_path):
    special = torch.tensor([float("nan"), -0.0, float("-inf"), 1e-45])
    tensors = [torch.arange(3.0).expand(2, 3), torch.empty(0, 4), torch.tensor(7)]
    write_tensors(tmp_path / "a", [special, *tensors])
    first, *others = read_tensors(tmp_path / "a")
    assert first.view(torch.int32).tolist() == special.view(torch.int32).tolist()
    assert all(map(torch.equal, others, tensors))
    others[0][0, 0] = 9  # an expanded tensor gets memory for each element
    assert others[0].tolist() == [[9, 1, 2], [0, 1, 2]]


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_changed_bit_is_detected(tmp_path_factory, place, bit):
    path = tmp_path_factory.mktemp("stored") / "a"
    tensors = [torch.arange(6.0).view(2, 3), torch.ones(2, dtype=torch.bfloat16)]
    write_tensors(path, tensors)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        back = read_tensors(path)
    except DamagedError:
        return
    for one, other in zip(back, tensors, strict=True):  # the bit was in the padding of the header
        assert torch.equal(one, other)
        assert (one.dtype, one.stride()) == (other.dtype, other.stride())


@pytest.mark.parametrize("content", [b"", b"hello, this is not a tensor", 100, -1])
def test_another_or_cut_file_is_detected(tmp_path, content):
    write_tensors(tmp_path / "a", [torch.arange(6.0)])
    written = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(written[:content] if isinstance(content, int) else content)
    with pytest.raises(DamagedError):
        read_tensors(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "b")


def test_several_threads_may_write_the_same_file(tmp_path):
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


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    def full(flat, place, metadata):
        place.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qat_lightning.training.teacher_cache.tensor_files.save_file", full)
    with pytest.raises(OSError, match="No space"):
        write_tensors(tmp_path / "a", [torch.ones(2)])
    assert list(tmp_path.iterdir()) == []
