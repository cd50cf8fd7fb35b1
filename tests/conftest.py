"""No test uses the network, loopback apart: whatever in this process asks for another address ends with an
error that says so. Random inputs follow from MMED_TEST_SEED (default 0).
"""
import ipaddress
import os
import random
import re
import sys

import pytest
from hypothesis import HealthCheck, settings
from tiny_world import make_world


def is_loopback(host: object) -> bool:
    if host in (None, "", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(host.decode() if isinstance(host, bytes) else str(host)).is_loopback
    except ValueError:
        return False


def only_loopback(event: str, arguments: tuple) -> None:
    if event in ("socket.connect", "socket.sendto") and isinstance(
            arguments[1], tuple) and not is_loopback(arguments[1][0]):
        raise RuntimeError(f"a test asks for {arguments[1]}: tests use no network but loopback")
    # a number asks nobody
    if event == "socket.getaddrinfo" and not is_loopback(arguments[0]) and not re.fullmatch(
            r"[\d\[:][\da-fxA-FX.:\]]*", str(arguments[0])):
        raise RuntimeError(
            f"a test asks for the address of {arguments[0]!r}: tests use no network but loopback")


sys.addaudithook(only_loopback)
# another process may stop an example for longer than any limit
settings.register_profile("busy machine", deadline=None, print_blob=True,
                          suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")
if "PYTEST_XDIST_WORKER" in os.environ:  # files run side by side: a thread for each
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def seed() -> int:
    value = int(os.environ.get("MMED_TEST_SEED", "0"))
    print("MMED_TEST_SEED", value)  # shown when the test fails
    return value


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def rng(seed) -> random.Random:
    return random.Random(seed)
