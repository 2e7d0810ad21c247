# SPDX-License-Identifier: Apache-2.0
"""aioquic's transport behind one door: sans-IO, with what release 1.7.2 lacks as overrides of its privates.

configuration  what every connection of a listener shares: certificate, protocols, windows
connection     one connection, whose windows, datagrams and turns are ours to decide
first_look     datagrams that belong to no connection
"""
