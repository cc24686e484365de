"""The cost of a distilled step does not grow: `everything` against a plain step, compared with budget.json.

To write budget.json again: run the command of the error message on an idle machine, and take its `ratio_of_least`.
"""

import json
from pathlib import Path

from qat_lightning.commands.bench.training import measure_training
from tests.commands.bench.configurations import composed

BUDGET = Path(__file__).with_name("budget.json")
VARIANT, ALLOWED, ATTEMPTS = "everything", 1.25, 3


def test_a_step_with_all_terms_keeps_its_budget():
    budget = json.loads(BUDGET.read_text())
    limit, ratios = ALLOWED * budget["ratio_of_least"], []
    while len(ratios) < ATTEMPTS and not (ratios and ratios[-1] <= limit):
        with composed("training", *budget["overrides"]) as config:
            rows = measure_training(config, lambda line: None)["variants"]
        # the fastest rounds: other programs only ever add to a round
        ratios.append(rows[VARIANT]["step"]["ratio_of_least"])
    command = " ".join(f"'{override}'" for override in budget["overrides"])
    assert ratios[-1] <= limit, (
        f"a step of {VARIANT} takes {min(ratios):.2f} plain steps, and took {budget['ratio_of_least']} before: make it"
        f" cheaper, or write {BUDGET.name} again: python -m qat_lightning.bench bench=training {command} output=FILE"
    )
