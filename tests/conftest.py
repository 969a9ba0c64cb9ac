"""Hypothesis profiles: `quick` unless `--hypothesis-profile=thorough` is given. Fixtures for all tests."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "quick", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=3000)
settings.load_profile("quick")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what is to run in the background so, and children would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 360 kB with random weights, a trained tokenizer and a chat template."""
    from tests.models.tiny import write_tiny

    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def playing(tiny_gguf: Path) -> str:
    """The fastest device without a GPU that plays language models in this build."""
    from nocopy.errors import DeviceError
    from nocopy.session.language import LanguageModel

    try:
        with LanguageModel(tiny_gguf, device="cpu") as model:
            model.session().append([1])
    except DeviceError:
        return "reference"
    return "cpu"


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory):
    """An object store that speaks S3 on the loopback, with an empty bucket; its environment reaches it."""
    from tests.snapshot import object_server

    if not object_server.installed():
        missing = "the object server of these tests is Debian's python3-swift: tools/setup.sh objects"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    import datetime
    import urllib.request

    import obstore
    from obstore.store import S3Store

    server = object_server.ObjectServer(tmp_path_factory.mktemp("objects"))
    try:
        bucket = S3Store(
            object_server.BUCKET,
            endpoint=server.endpoint,
            access_key_id=object_server.USER,
            secret_access_key=object_server.PASSWORD,
            region="us-east-1",
            client_options={"allow_http": True},
        )
        # No client library of ours makes buckets: the URL is signed, the request is plain.
        url = obstore.sign(bucket, "PUT", "", datetime.timedelta(minutes=1))
        with urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=30) as answer:
            assert answer.status == 200
        yield server
    finally:
        server.close()
