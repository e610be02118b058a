"""Write the scores of demo runs into the cards of the models that made them."""

# cosmofields demo --box box_104.h5 --model models --out demo-104
# cosmofields demo --box box_105.h5 --model models --out demo-105
# python tools/record_scores.py models demo-104 demo-105

import argparse
import json
from pathlib import Path

KEPT = ("correlation_coefficient", "rms_error", "slope", "misalignment_mean")


def record_scores(models: Path, demos: list[Path]) -> None:
    """Put what each demo says of the network's fields under ``scores`` of its card."""
    runs = [json.loads((demo / "scores.json").read_text()) for demo in demos]
    for target in ("density", "velocity"):
        path = models / f"{target}.json"
        card = json.loads(path.read_text())
        card["scores"] = {
            run["box"]["file"]: {
                "role": run["box"]["role"],
                "line_of_sight": run["box"]["los"],
                "cell_size": run["cell_size"],
                **{
                    key: round(value, 4)
                    for key, value in run["scores"]["network"][target].items()
                    if key in KEPT
                },
            }
            for run in runs
        }
        path.write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, help="directory of the models")
    parser.add_argument("demos", type=Path, nargs="+", help="output directories of the demo")
    args = parser.parse_args()
    record_scores(args.models, args.demos)
