from importlib.metadata import version

from qat_lightning.commands.bench import environment as module
from qat_lightning.commands.bench.environment import machine, versions

X86 = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz: the fast one\nflags\t\t: fpu avx2 avx512_vnni avx512foo\n"
ARM = "processor : 0\nFeatures : fp asimd asimddp\n"


def test_the_processor_is_told_as_the_system_knows_it(tmp_path, monkeypatch):
    place = tmp_path / "cpuinfo"
    monkeypatch.setattr(module, "PROCESSOR", place)
    place.write_text(X86)
    assert machine()["processor"] == "Some CPU @ 2 GHz: the fast one"
    assert machine()["instructions"] == ["avx2", "avx512_vnni"]
    place.write_text(ARM)
    assert machine()["instructions"] == ["asimd", "asimddp"]


def test_a_system_that_says_nothing_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PROCESSOR", tmp_path / "none")
    monkeypatch.setattr(module.platform, "processor", lambda: "")
    monkeypatch.setattr(module.platform, "machine", lambda: "riscv64")
    found = machine()
    assert (found["processor"], found["instructions"]) == ("riscv64", [])
    assert found["cores"] >= 1


def test_versions_are_those_installed():
    assert versions()["onnxruntime"] == version("onnxruntime")
    assert {"torch", "transformers", "onnx", "qat-lightning"} <= versions().keys()
