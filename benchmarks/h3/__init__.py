# SPDX-License-Identifier: Apache-2.0
"""What HTTP/3 costs our gateway, beside Envoy and Caddy in the same run.

servers     who is measured, and the nginx behind all of them
client      one QUIC connection of the load
load        a fixed number of requests in flight, as a process of its own
handshakes  new connections, full and resumed, and what an idle one keeps, as a process of its own
compare     every point of load, the gateways in turns
grid        cost against connections, requests in flight, body size and endpoints, as plots
"""
