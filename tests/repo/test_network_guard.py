"""The guard of tests/conftest.py: the test suite cannot reach other machines, and can reach this one."""

import os
import socket

import pytest


def test_a_connection_to_another_machine_is_refused() -> None:
    with socket.socket() as client, pytest.raises(RuntimeError, match="without a network"):
        client.connect(("192.0.2.1", 80))  # an address reserved for documentation (RFC 5737)


def test_a_connection_to_this_machine_works() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()


def test_the_hub_is_offline_for_worker_processes_too() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
