# SPDX-License-Identifier: Apache-2.0
"""Which worker gets which datagram: decided in the kernel, by a program that reads connection ids."""
