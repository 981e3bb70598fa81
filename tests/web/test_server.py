import socket
import sys

import pytest

from ovd_d2.errors import OVDError
from ovd_d2.web.server import bound_socket, check_packages


@pytest.mark.parametrize("package", ["gradio", "fastapi", "gradio_image_annotation", "uvicorn"])
def test_a_missing_package_is_one_sentence(monkeypatch, package):
    for name in ("fastapi", "uvicorn", "gradio", "gradio_image_annotation"):
        monkeypatch.setitem(sys.modules, name, sys)  # there, and quick
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(OVDError, match=rf"needs {package} .*: run pip install 'ovd_d2\[web\]'"):
        check_packages()


def test_a_taken_port_and_a_host_of_nobody():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OVDError, match=f"127.0.0.1:{port} .*choose another --port"):
            bound_socket("127.0.0.1", port)
    with pytest.raises(OVDError, match="choose another --port or --host"):
        bound_socket("203.0.113.1", 0)
    with pytest.raises(OVDError, match="choose another --port or --host"):
        bound_socket("a" * 70, 0)


def test_any_free_port():
    with bound_socket("127.0.0.1", 0) as listening:
        host, port = listening.getsockname()
        assert host == "127.0.0.1" and port > 0
