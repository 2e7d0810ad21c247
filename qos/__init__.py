# SPDX-License-Identifier: Apache-2.0
"""What each request is promised: the words and decisions about quality of service, without I/O and without a clock.

traffic_class   a traffic class and the table of all of them, in rank order
dscp            code points by name
units           durations and sizes as people write them
timeline        one request's clock readings and the parts they add up to
classify        which class a request gets, and why
scheduler       whose turn it is at a pool's gate
schema          the strict, frozen model that settings of every package are made of
settings        classes, rules and trust as the config file writes them

Nothing here imports `backends` or `proxy`.
"""
