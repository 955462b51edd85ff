"""The model card of an embedded source."""

import json
from dataclasses import dataclass

from autotransfer.sources.embedded.tasks import Distilled, Task
from autotransfer.sources.embedded.training import MEAN, STD, TrainingRun
from autotransfer.sources.embedded.zoo import ZooEntry

_CARD = """---
tags:
- image-classification
- timm
library_name: timm
license: apache-2.0
---
# {name}

A small image classifier pretrained on generated images, to be transferred to other tasks.

| | |
| --- | --- |
| architecture | timm's `{architecture}`{arguments} |
| parameters | {parameters:,} |
| weights | float16, {kilobytes:,} kB |
| input | {size} x {size} RGB, mean {mean}, std {std} (other sizes work) |
| classes | {classes} |
| accuracy on its own task | {accuracy:.1%} top-1, {held_out:,} held-out images (chance: {chance:.1%}) |
| licence | Apache-2.0; {provenance} |

## Task

{task}: {summary}. Generator: `autotransfer/sources/embedded/tasks/{task}.py`.

## Recipe

`python -m autotransfer.sources.embedded.build {name}{options}`: {steps:,} steps of {batch_size} fresh images
({images:,} in all, none seen twice), AdamW, peak learning rate {learning_rate:g}, one cycle, weight
decay 0.05, {loss}, bfloat16 autocast, {curriculum}, seed {seed}.
It took {seconds:.0f} seconds, generation included, on {device}.

## Use

Good at: {good_at}. Not to be expected: {bad_at}.

```python
import timm
from autotransfer.sources.embedded import embedded_folder

model = timm.create_model(f"local-dir:{{embedded_folder('{name}')}}", pretrained=True)
```
"""


@dataclass(frozen=True, kw_only=True)
class OwnTaskResult:
    """How the exported model does on its own task.

    Attributes:
        accuracy: top-1 on held-out images, 0..1.
        images: how many held-out images.
        parameters: of the whole network, classifier included.
        weights_bytes: size of `model.safetensors`.
    """

    accuracy: float
    images: int
    parameters: int
    weights_bytes: int


def model_card(entry: ZooEntry, task: Task, run: TrainingRun, result: OwnTaskResult, *, seed: int) -> str:
    """Write the card, as Markdown, from what was measured."""
    curriculum = f"difficulty rising over the first {entry.curriculum:.0%} of the steps"
    distilled = entry.task == Distilled.name
    arguments = f" with `{json.dumps(dict(entry.model_args))}`" if entry.model_args else ""
    return _CARD.format(
        name=entry.name,
        architecture=entry.architecture,
        arguments=arguments,
        parameters=result.parameters,
        kilobytes=round(result.weights_bytes / 1000),
        size=entry.image_size,
        mean=MEAN[0],
        std=STD[0],
        classes=len(task.class_names),
        accuracy=result.accuracy,
        held_out=result.images,
        chance=1 / len(task.class_names),
        task=task.name,
        summary=task.summary,
        options=(" --teacher TEACHER" if distilled else "")
        + ("" if run.steps == entry.steps else f" --steps {run.steps}"),
        loss="cross-entropy with the teacher's softened probabilities" if distilled else "cross-entropy",
        provenance=task.provenance + (f" ({entry.teacher})" if entry.teacher else ""),
        steps=run.steps,
        batch_size=entry.batch_size,
        images=run.steps * entry.batch_size,
        learning_rate=entry.learning_rate,
        curriculum=curriculum if entry.curriculum else "full difficulty from the start",
        seed=seed,
        seconds=run.seconds,
        device=run.device,
        good_at=entry.good_at,
        bad_at=entry.bad_at,
    )
