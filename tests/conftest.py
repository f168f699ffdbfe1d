"""The strictest configuration: several CPU devices, no implicit promotion, warnings are errors."""

from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "float32")


@pytest.fixture
def data() -> Path:
    """The folder of recorded checkpoints and tensors."""
    return Path(__file__).parent / "data"


@pytest.fixture
def stories260k(data: Path) -> Path:
    """A real trained Llama of 260,032 parameters."""
    return data / "stories260k"
