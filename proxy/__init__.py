# SPDX-License-Identifier: Apache-2.0
"""The gateway: everything wired into one walk, from a datagram in to a reply out.

cli                 the command `inferlane`
server              starts and stops all of it, in one readable order
listeners/          sockets and timers
protocols/          bytes <-> requests and replies, without sockets
arrival             the words between protocols and the walk
pipeline            the walk: classify, gate, forward, reply
gate                where requests wait for a place at a backend
telemetry/          metrics, the log line, the admin port
config, settings    the YAML file -> one frozen Config, or every error with its line and column
explain             what a described request would get, and why

Sits above `backends` and `qos`; neither imports it.
"""
