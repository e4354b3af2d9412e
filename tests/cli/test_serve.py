"""`quire serve`, as far as it can be seen without a model: what ends it at once. The rest is in tests/server."""

import os
import socket

import pytest

from quire.cli.main import main


def test_a_port_in_use_is_named_with_its_holder(capsys):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert f"port {port} is in use by process {os.getpid()}" in err and "--port" in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--port", "70000"], "between 0 and 65535"),
        (["--host", "no.such.host.invalid"], "--host"),
        (["--config", "/no/such/file.yaml"], "/no/such/file.yaml"),
        (["--served-model-name", "a", "some/model"], "put the model before it"),
    ],
)
def test_wrong_options_end_it_before_anything_starts(argv, words, capsys):
    assert main(["serve", *argv]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
