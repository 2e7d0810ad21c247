# SPDX-License-Identifier: Apache-2.0
"""`inferlane demo`: a gateway on loopback, a real model, real files, all four transports.

showing   starts the gateway, asks, makes the table
model     fetches the model
magika    file bytes to the model's input, its output to a label
inputs    which files
"""
