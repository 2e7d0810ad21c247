# SPDX-License-Identifier: Apache-2.0
"""Who answers: endpoints, the pools they form, and the code that talks to each kind of them.

messages, body      the request and the reply that cross this package's border
backend, errors     what every kind of backend can do, and what stops one from starting
settings            pools and endpoints as the config file writes them
endpoint, picker    one place that can answer; choosing among several
pool, routes        the endpoints of one model; which pool serves which model
build               settings -> routes: the one table of backend kinds
local/              models run in this process
remote/             other servers

Imports `qos`, never `proxy`.
"""
