import pytest

from tests.sdk.driver import Driver, build


@pytest.fixture(scope="session", params=["wasm32", "wasm64"])
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return build(request.param, tmp_path_factory.mktemp(f"driver-{request.param}"))
