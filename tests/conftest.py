"""The strictest configuration: several CPU devices, no implicit promotion, warnings are errors."""

import os
import shutil
import tempfile
from pathlib import Path

import jax
import pytest

# The tests of whole runs start many processes that compile the same programs: each is compiled once.
OURS = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if OURS:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jevomerge-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of torch that wait do so at full speed

QUICKLY = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "float32")


def pytest_configure(config: pytest.Config) -> None:
    """Spare the compiler what pays only in long tests.

    Most of the suite's time went into fast machine code that ran once. These flags leave out LLVM's optimisations
    and MLIR's way to emit loops; the programs and their partitioning stay. `XLA_FLAGS= pytest` compiles everything
    as for users, as `e2e/test_racing.py` always does.
    """
    if config.option.markexpr == "not slow":
        os.environ.setdefault("XLA_FLAGS", " ".join(QUICKLY))


def pytest_unconfigure() -> None:
    """Remove what the first process, whose workers found it in their environment, made."""
    if OURS:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture
def data() -> Path:
    """The folder of recorded checkpoints and tensors."""
    return Path(__file__).parent / "data"


@pytest.fixture
def stories260k(data: Path) -> Path:
    """A real trained Llama of 260,032 parameters."""
    return data / "stories260k"


@pytest.fixture(scope="session")
def siblings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real merging problem: `base`, a story teller, and two copies `front` and `back` of it.

    Each copy has half of its layers damaged by noise, a different half, so that the right mixture repairs
    both.  Beside them `run.yaml`, a short evolution, and its task: to continue stories as `base` does.
    """
    import json
    import shutil

    import numpy as np
    from safetensors.numpy import load_file, save_file

    folder = tmp_path_factory.mktemp("siblings")
    original = Path(__file__).parent / "data" / "stories260k"
    shutil.copytree(original, folder / "base")
    (folder / "base" / "README.md").write_text("---\nlicense: mit\n---\n# stories\n")
    weights = load_file(original / "model.safetensors")
    rng = np.random.default_rng(0)
    for name, damaged in (("front", (0, 1)), ("back", (3, 4))):
        shutil.copytree(folder / "base", folder / name)
        noisy = dict(weights)
        for key, value in weights.items():
            if any(f".layers.{i}." in key for i in damaged) and value.ndim == 2:
                noisy[key] = value + rng.normal(0, 0.6 * value.std(), value.shape).astype(np.float32)
        save_file(noisy, folder / name / "model.safetensors", metadata={"format": "pt"})
    begun = ["Once upon a time", "One day, a little", "Lily and Tom", "The big dog", "Mom said", "There was a boy"]
    rest = [", there was a little girl named Lily.", " cat went to the park.", " liked to play.", " was happy."]
    rows = [{"begin": b, "end": e} for b in begun for e in rest]
    for split, part in (("search", rows[:16]), ("heldout", rows[16:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))
    (folder / "task.yaml").write_text(TASK)
    (folder / "run.yaml").write_text(RUN)
    return folder


TASK = """
name: stories
search: search.jsonl
heldout: heldout.jsonl
prompt: "{begin}"
answer: "{end}"
score: likelihood
"""
RUN = """
name: repair
recipe:
  merge_method: linear
  models:
    - model: front
    - model: back
  dtype: float32
genome:
  weight: {range: [0, 1], layers_per_group: 2}
tasks: [task.yaml]
search: {evaluations: 120, checkpoint_every: 2}
"""
