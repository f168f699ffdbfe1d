"""What users hand in and cannot be right, by kind; `test_bad_inputs.py` beside it says what must become of them."""

from tests.e2e.bad_inputs import drawing, models, pictures, runs, weights, yamls
from tests.e2e.bad_inputs.world import Input, World, make_world

__all__ = ["KINDS", "Input", "World", "make_world"]
KINDS: dict[str, list[Input]] = {
    "safetensors": weights.WEIGHTS,
    "index": weights.INDICES,
    "config.json": models.CONFIGS,
    "tokenizers": models.TOKENIZERS,
    "templates": models.TEMPLATES,
    "adapters": models.ADAPTERS,
    "recipes": yamls.RECIPES,
    "configs": yamls.CONFIGS,
    "tasks": yamls.TASKS,
    "data": yamls.DATA,
    "pictures": pictures.PICTURES,
    "image pipelines": drawing.DRAWING,
    "run folders": runs.RUNS,
    "output paths": runs.OUTPUTS,
}
