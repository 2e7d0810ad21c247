# SPDX-License-Identifier: Apache-2.0
"""What `inferlane` does besides running: asking a gateway, its kernel or its config, and printing what they say.

*_cli       commands with their options
*_client    how a running gateway is asked
*_report, *_status, replies, arrays   what is printed
explain*    what a described request or packet would get
terminal    tables, errors, exit codes
"""
