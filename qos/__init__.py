# SPDX-License-Identifier: Apache-2.0
"""What each request is promised: the words and decisions about quality of service, without I/O and without a clock.

traffic_class   a traffic class and the table of all of them, in rank order
dscp            code points by name
units           durations and sizes as people write them
timeline        one request's clock readings and the parts they add up to
classify        which class a request gets, and why
scheduler       whose turn it is at a pool's gate, between classes
fairness        whose turn it is among the clients of one class
admission       who may still wait, who makes room, when to come back
limit           how many requests an endpoint serves well
latency         what answers took, fading with time
budget          how many extra attempts may be made
diagnosis       how promises are spent, and which part breaks them; promise its words, advice its sentences
schema          the strict, frozen model that settings of every package are made of
settings        classes, rules and trust as the config file writes them

Nothing here imports `backends` or `proxy`.
"""
