# SPDX-License-Identifier: Apache-2.0
"""The gateway: everything wired into one walk, from a datagram in to a reply out.

cli, commands/      the command `inferlane`; demo and serve are parts of it
supervise/          `inferlane run`: the process that starts, watches and replaces workers
server              one worker: starts and stops all of it, in one readable order
listeners/          sockets, and the protocols' shells around them
protocols/          bytes <-> requests and replies, without sockets
arrival             the words between protocols and the walk
walk/               the walk: classify, queue, attempt, reply
telemetry/          metrics, the log line, the diagnosis, the admin port
lookout, control    what looks after endpoints; the admin's Unix socket
config              the YAML file -> one frozen Config, or every error with its line and column:
                    positions reads it, settings says its shape, config_checks compares its parts,
                    config_errors finds the words, schema tells editors
certificate, state  the development certificate; where the gateway keeps what outlives it
timers              one heap of them for a worker

Sits above `backends` and `qos`; neither imports it.
"""
