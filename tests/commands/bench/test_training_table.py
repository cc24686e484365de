from rich.console import Console

from qat_lightning.commands.bench.training_step import BASELINE
from qat_lightning.commands.bench.training_table import scaling_table, training_table

MEBIBYTE = 2**20
ABOUT = {
    "bench": "training",
    "command": ["bench=training", "bench.only=[qat]"],
    "machine": {"processor": "Some CPU", "cores": 4, "instructions": ["avx2"]},
    "versions": {"torch": "2.13.0"},
    "model": {"family": "bert", "parameters": 109_483_778},
    "baseline": BASELINE,
    "threads": 2,
    "device": "cpu",
    "shape": "16×128",
    "precision": "32-true",
    "clock": "wall",
    "repeats": 5,
}


def seconds(median, low, high):
    return {"median": median, "low": low, "high": high, "least": low}


def row(median, ratio, peak):
    return {
        "step": {
            "seconds": seconds(median, 0.9 * median, 2 * median),
            "ratio": ratio,
            "samples_per_second": 16 / median,
        },
        "evaluation": {"seconds": seconds(median / 5, 0, 0), "ratio": ratio / 2},
        "memory": {"peak": peak * MEBIBYTE, "kept": MEBIBYTE, "saved": peak * MEBIBYTE // 2},
    }


TRAINING = ABOUT | {
    "variants": {BASELINE: row(0.05, 1.0, 80), "qat": row(2.0, 1.5, 100), "map": {"error": "ValueError: no map here"}}
}
SCALING = ABOUT | {
    "variant": "everything",
    "axes": {
        "lengths": {
            "64": {
                BASELINE: {"seconds": seconds(0.5, 0, 0), "ratio": 1.0, "peak": 100 * MEBIBYTE},
                "everything": {"seconds": seconds(0.75, 0, 0), "ratio": 1.5, "peak": 250 * MEBIBYTE},
            }
        },
        "processes": {
            "1": {
                BASELINE: {"seconds": seconds(0.01, 0, 0), "ratio": 1.0},
                "everything": {"seconds": seconds(0.02, 0, 0), "ratio": 2.0},
            },
            "2": {"error": "RuntimeError: gloo"},
        },
    },
}


def shown(table, results, width=100):
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table(results))
    return capture.get()


def test_every_figure_stands_in_its_row():
    """2 s against 16 rows are 8 rows a second; 100 MiB against 80 are 1.25 times; 50 MiB are saved."""
    rows = {line[:13].strip(): line[13:].split() for line in shown(training_table, TRAINING).splitlines()}
    assert rows["qat"] == ["2000", "1800–4000", "1.50×", "8.0", "100", "1.25×", "50.0", "400", "0.75×"]
    assert rows["transformers"] == ["50.0", "45.0–100", "1.00×", "320.0", "80.0", "1.00×", "40.0", "10.0", "0.50×"]
    assert "map" not in rows


def test_what_failed_is_told_below():
    assert "map: ValueError: no map here" in shown(training_table, TRAINING)
    assert "processes 2: RuntimeError: gloo" in shown(scaling_table, SCALING)


def test_what_was_not_measured_has_no_column():
    results = TRAINING | {
        "variants": {name: {"step": one["step"]} for name, one in TRAINING["variants"].items() if "step" in one}
    }
    text = shown(training_table, results)
    assert "peak" not in text
    assert "eval" not in text
    assert "1.50×" in text


def test_the_heading_says_what_was_run_and_where():
    heading = shown(training_table, TRAINING, 200)
    for told in (
        "python -m qat_lightning.bench bench=training 'bench.only=[qat]'",
        "bert, 109,483,778 parameters, random weights; threads: 2",
        "steps of 16×128 (rows × tokens; of images rows) on cpu, 32-true",
        "ms, median of 5; MiB; ratio: to transformers",
    ):
        assert told in heading


def test_processor_time_is_told_as_such():
    assert "ms of processor time, median of 5" in shown(training_table, TRAINING | {"clock": "processor"})


def test_longest_rows_fit_into_100_columns():
    wide = row(12.345, 12.34, 123_456)
    results = TRAINING | {"variants": {BASELINE: wide, "ti_context, compiled": wide}}
    text = shown(training_table, results)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text


def test_scaling_has_a_row_for_each_point():
    lines = [line.split() for line in shown(scaling_table, SCALING).splitlines()]
    assert ["lengths", "64", "500", "750", "1.50×", "100", "250", "2.50×"] in lines
    assert ["processes", "1", "10.0", "20.0", "2.00×", "–", "–", "–"] in lines
    assert ["processes", "2", "–", "–", "–", "–", "–", "–"] in lines


def test_memory_of_compiled_rows_is_beside_the_compiled_baseline():
    """Eager 400 MiB, compiled 100 and 200: the last takes twice its own baseline."""
    rows = {
        name: row(1.0, 1.0, peak)
        for name, peak in ((BASELINE, 400), (f"{BASELINE}, compiled", 100), ("qat, compiled", 200))
    }
    lines = [line.split() for line in shown(training_table, TRAINING | {"variants": rows}).splitlines()]
    ratios = {" ".join(line[:2]): line for line in lines if "compiled" in line}
    assert "2.00×" in ratios["qat, compiled"]
    assert "0.25×" not in ratios["transformers, compiled"]
    del rows[BASELINE]
    assert "2.00×" in shown(training_table, TRAINING | {"variants": rows})
