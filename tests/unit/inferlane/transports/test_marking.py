# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import socket

import pytest

from inferlane.transports.marking import DEFAULT_DSCP, mark
from qos.dscp import parse_dscp
from qos.marking import usual_priority


def test_the_classes_of_the_reference_config_have_its_marks():
    named = {"realtime": "EF", "interactive": "AF21", "batch": "AF11", "background": "LE"}

    assert {name: parse_dscp(mark_name) for name, mark_name in named.items()} == DEFAULT_DSCP


@pytest.mark.parametrize("dscp", [0, 46, 63])
def test_an_ipv4_socket_is_marked_and_its_ecn_bits_stay_clear(dscp):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        mark(sock, "127.0.0.1", dscp)

        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == dscp << 2


@pytest.mark.parametrize(("host", "tos"), [("::1", 0), ("::ffff:127.0.0.1", 46 << 2)])
def test_an_ipv6_socket_is_marked_for_both_families_where_it_may_speak_both(host, tos):
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        mark(sock, host, 46)

        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == 46 << 2
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == tos


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("dscp", [*DEFAULT_DSCP.values(), 8, 32, 63])
def test_this_machine_s_own_queues_keep_the_order_too(host, dscp):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        mark(sock, host, dscp)

        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == usual_priority(dscp)


def test_a_kernel_that_refuses_costs_a_warning_only(caplog):
    closed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    closed.close()

    with caplog.at_level(logging.WARNING):
        mark(closed, "127.0.0.1", 46)

    assert "travel without DSCP 46" in caplog.text
