from rich.console import Console

from qat_lightning.commands.bench.inference_table import inference_table
from qat_lightning.commands.bench.runtimes import BASELINE, ONNX


def runtime(bytes, ratio, load, **speed):
    return {
        "bytes": bytes,
        "ratio": ratio,
        "load": {"median": load},
        "speed": {
            shape: {"seconds": {"median": seconds}, "speedup": speedup} for shape, (seconds, speedup) in speed.items()
        },
    }


RESULTS = {
    "bench": "inference",
    "command": ["bench=inference", "bench.shapes=[[1,32],[8,128]]"],
    "machine": {"processor": "Some CPU", "cores": 4, "instructions": ["avx2"]},
    "versions": {"torch": "2.13.0", "onnxruntime": "1.31.1"},
    "model": {"family": "bert", "parameters": 109_483_778, "bits": {}},
    "baseline": BASELINE,
    "threads": 2,
    "repeats": 20,
    "runtimes": {
        BASELINE: runtime(437_937_766, 1.0, 0.714, **{"1×32": (0.04216, 1.0), "8×128": (0.9996, 1.0)}),
        ONNX: runtime(30_408_704, 14.4, 1.296, **{"1×32": (0.0151, 2.792), "8×128": (1.0 / 3, 2.998)}),
    },
}


def shown(width):
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(inference_table(RESULTS))
    return capture.get()


def test_every_figure_stands_in_its_row():
    """437,937,766 / 2²⁰ = 417.65, of which one decimal is shown; 30,408,704 / 2²⁰ = 29."""
    rows = {line[:22].strip(): line[22:].split() for line in shown(100).splitlines()}
    assert rows[BASELINE] == ["417.6", "1.00×", "0.71", "42.2", "(1.00×)", "1000", "(1.00×)"]
    assert rows[ONNX] == ["29.00", "14.40×", "1.30", "15.1", "(2.79×)", "333", "(3.00×)"]
    assert rows["runtime"] == ["MiB", "ratio", "load", "s", "1×32", "8×128"]


def test_the_heading_says_what_was_run_and_where():
    heading = shown(200)
    for told in (
        "python -m qat_lightning.bench bench=inference 'bench.shapes=[[1,32],[8,128]]'",
        "bert, 109,483,778 parameters, random weights; threads: 2",
        "Some CPU, 4 cores (avx2)",
        "torch 2.13.0, onnxruntime 1.31.1",
        "median of 20; (×): against onnxruntime float32",
    ):
        assert told in heading


def test_a_narrow_terminal_loses_no_figure():
    text = shown(64)
    assert max(map(len, text.splitlines())) <= 64
    assert "…" not in text
    assert all(figure in text for figure in ("417.6", "14.40×", "42.2", "(2.79×)", "(3.00×)"))
