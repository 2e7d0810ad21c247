# SPDX-License-Identifier: Apache-2.0
"""aioquic's transport behind one door: sans-IO, with a short way for usual packets and what release 1.7.2 lacks.

connection      one connection, whose windows, datagrams and turns are ours to decide
receiving       the short way in; whatever is unusual goes to aioquic's own code
sending         the short way out, full_packets for one stream's bulk
streams         which streams have something to say, and windows that follow what came in order
recovery        acknowledgements, loss and pacing on the short way
frames          STREAM, ACK and numbers as bytes; protection: one AEAD call a packet
handshake       a lean beginning, bounded; shortcuts: aioquic's hot helpers
identity        connection_ids that say which worker, reset tokens, tickets
first_look      datagrams that belong to no connection; retry: who has to prove an address
untaken         replies that a client does not take
configuration   what every connection of a listener shares: certificate, protocols, windows
"""
