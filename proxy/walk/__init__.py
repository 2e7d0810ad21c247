# SPDX-License-Identifier: Apache-2.0
"""One request through the gateway: judged, queued by class, sent to an endpoint, its answer passed on.

pipeline      the walk itself, top to bottom
pool_walk     one pool as the walk uses it: its gate, and the attempts that take places there
gate          who waits for a place, and who gets the next one
token_stream  pieces on their way to the client, clocked and bounded
eviction      ending a walk for a higher class
describing    what is asked but inference
refusals      what a request that gets no place is told
"""
