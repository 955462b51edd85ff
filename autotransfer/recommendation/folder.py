"""The output folder: the model, the answer, the trials, and how to load it all."""

import json
from pathlib import Path

from autotransfer.recommendation.recommendation import Recommendation
from autotransfer.transfer.model import write_whole


def save_recommendation(recommendation: Recommendation, folder: Path) -> Path:
    """Write model, recommendation.json, trials.csv, sources.csv and README.md to `folder`."""
    recommendation.model.save(folder)
    _write(folder / "recommendation.json", json.dumps(recommendation.to_dict(), indent=2, default=str) + "\n")
    _write(folder / "trials.csv", recommendation.trials.to_csv(index=False))
    _write(folder / "sources.csv", recommendation.sources.to_csv(index=False))
    _write(folder / "README.md", _readme(recommendation, folder))
    return folder


def _readme(recommendation: Recommendation, folder: Path) -> str:
    config, test, name = recommendation.config, recommendation.test, folder.resolve().name
    reasons = "\n".join(f"- {sentence}" for sentence in recommendation.why)
    timm_lines = (
        "\nWithout autotransfer, timm opens it:\n\n"
        "```python\nimport timm\n"
        f'model = timm.create_model("local-dir:{name}", pretrained=True)\n```\n'
        if recommendation.model.opens_with_timm
        else "\nIts upper layers are cut off, so it opens with autotransfer (timm alone wants the whole network).\n"
    )
    return (
        f"# {config.source}, transferred to {_outputs(recommendation)}\n\n"
        f"{test.metric} on {test.n} test images: {test.value:.4f} "
        f"(95% interval {test.low:.4f} to {test.high:.4f}).\n\n"
        "```python\nimport autotransfer\n"
        f'model = autotransfer.load("{name}")\n'
        'model.predict(["image.jpg"])\n```\n'
        f"{timm_lines}\n## Why\n\n{reasons}\n\n"
        "Files: `config.json` and `model.safetensors` (timm's hub layout), `autotransfer.json` (classes, "
        "preprocessing, configuration), `recommendation.json`, `trials.csv`, `sources.csv`.\n"
    )


def _outputs(recommendation: Recommendation) -> str:
    kinds = {"classification": "classes", "multilabel": "labels", "regression": "numbers"}
    classes = recommendation.model.classes
    kind = kinds[recommendation.model.task]
    return f"{len(classes)} {kind.removesuffix('s') if len(classes) == 1 else kind}"


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
