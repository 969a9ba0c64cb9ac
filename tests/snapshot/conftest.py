import datetime
import os
import urllib.request

import pytest

from tests.snapshot import object_server


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """An object server with an empty bucket; its environment reaches it."""
    if not object_server.installed():
        missing = "the object server of these tests is Debian's python3-swift: tools/setup.sh objects"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
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
