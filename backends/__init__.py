# SPDX-License-Identifier: Apache-2.0
"""Who answers: endpoints, the pools they form, and the code that talks to each kind of them.

messages, body      the request and the reply that cross this package's border
backend, errors     what every kind of backend can do, and what stops one from starting
outcome             how one attempt at an endpoint ended
settings            endpoints as the config file writes them; pool_settings the pools around them
endpoint            one place that can answer, its exact count and what was learnt from it
pool, routes        the endpoints of one model; which pool serves which model
choosing/           which endpoint is next: pickers, predictions, health, zones
asking/             attempts: retries and hedges
lookout/            endpoints found, probed and shown
build               settings -> routes: the one table of backend kinds
local/              models run in this process
remote/             other servers

Imports `qos`, never `proxy`.
"""
