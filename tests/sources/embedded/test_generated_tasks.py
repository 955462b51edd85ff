import subprocess
import sys

import pytest
import torch

from autotransfer.sources.embedded.tasks import TASKS, Fractals, Glyphs, Medley, Textures, batch_generator

CLASSES = {"fractals": 100, "glyphs": 200, "medley": 700, "scenes": 160, "textures": 240}


def test_class_counts_are_known() -> None:
    assert {name: len(TASKS[name]().class_names) for name in TASKS} == CLASSES


@pytest.mark.parametrize("name", TASKS)
def test_classes_have_distinct_names(name: str) -> None:
    task = TASKS[name]()
    assert task.name == name
    assert len(set(task.class_names)) == len(task.class_names)


@pytest.mark.parametrize("image_size", [32, 64])
@pytest.mark.parametrize("name", TASKS)
def test_images_are_float_within_zero_and_one(name: str, image_size: int) -> None:
    task = TASKS[name]()
    images, labels = task.batch(batch_generator(0, "train", 0), 40, image_size)
    assert images.shape == (40, 3, image_size, image_size)
    assert images.dtype == torch.float32
    assert torch.isfinite(images).all()
    assert images.min() >= 0 and images.max() <= 1
    assert labels.dtype == torch.int64
    assert labels.min() >= 0 and labels.max() < len(task.class_names)


@pytest.mark.parametrize("name", TASKS)
def test_no_image_is_flat(name: str) -> None:
    images, _ = TASKS[name]().batch(batch_generator(1, "train", 0), 64, 48)
    assert images.flatten(1).std(1).min() > 1e-3


@pytest.mark.parametrize("name", TASKS)
def test_same_seed_gives_same_batch_from_a_fresh_task(name: str) -> None:
    first = TASKS[name]().batch(batch_generator(3, "train", 7), 16, 32)
    second = TASKS[name]().batch(batch_generator(3, "train", 7), 16, 32)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("name", TASKS)
def test_drawing_leaves_the_global_random_state_alone(name: str) -> None:
    before = torch.get_rng_state()
    TASKS[name]().batch(batch_generator(3, "train", 7), 8, 32)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("other", [(1, "train", 0), (0, "held-out", 0), (0, "train", 1)])
def test_other_seed_split_or_index_gives_other_images(other: tuple[int, str, int]) -> None:
    task = Glyphs()
    first, _ = task.batch(batch_generator(0, "train", 0), 8, 32)
    second, _ = task.batch(batch_generator(*other), 8, 32)
    assert not torch.equal(first, second)


def test_every_class_is_drawn() -> None:
    _, labels = Textures().batch(batch_generator(0, "train", 0), 4000, 8)
    assert len(labels.unique()) == CLASSES["textures"]


@pytest.mark.parametrize("name", TASKS)
def test_plain_pictures_of_a_class_vary_less_than_difficult_ones(name: str) -> None:
    task = TASKS[name]()
    spread = {}
    for difficulty in (0.0, 1.0):
        images, labels = task.batch(batch_generator(0, "train", 0), 1000, 16, difficulty=difficulty)
        same = [images[labels == label] for label in labels.unique()]
        spread[difficulty] = torch.stack([group.var(0, correction=0).mean() for group in same]).mean()
    assert spread[0.0] < spread[1.0]


def test_alphabet_seed_decides_what_a_character_looks_like() -> None:
    same, _ = Glyphs(10, alphabet_seed=1).batch(batch_generator(0, "train", 0), 8, 32)
    other, _ = Glyphs(10, alphabet_seed=2).batch(batch_generator(0, "train", 0), 8, 32)
    assert not torch.equal(same, other)


def test_medley_gives_each_task_its_share_and_its_own_labels() -> None:
    medley = Medley((Glyphs(10), Fractals(5)))
    assert medley.class_names[9:11] == ("glyphs: glyph-009", "fractals: fractal-000")
    _, labels = medley.batch(batch_generator(0, "train", 0), 9, 16)
    assert (labels[:5] < 10).all()
    assert ((labels[5:] >= 10) & (labels[5:] < 15)).all()


@pytest.mark.slow
def test_drawing_reads_no_file_so_no_dataset_can_have_entered() -> None:
    code = """
import sys
from autotransfer.sources.embedded.tasks import TASKS, batch_generator, make_task
tasks = {name: TASKS[name]() for name in TASKS}
distilled = make_task("distilled")
for task in tasks.values():  # whatever is imported on first use
    task.batch(batch_generator(0, "train", 0), 8, 32)
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
for task in tasks.values():
    task.batch(batch_generator(0, "train", 1), 40, 32)
distilled.collages(batch_generator(0, "train", 1), 40, 32)
print([name for name in opened if not name.endswith((".py", ".pyc"))])
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"
