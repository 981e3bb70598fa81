"""A https server and an empty cache."""

import pytest
from https_server import make_certificate, serving


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def server(certificate, monkeypatch):
    """A server that this process and those it starts trust; nobody waits between two tries."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setattr("ovd_d2.model_zoo.download.PAUSE", 0.0)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(certificate) as here:
        yield here


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OVD_D2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
