# SPDX-License-Identifier: Apache-2.0
"""The doors: sockets, timers and the connections behind them. They hand arrivals to a walk and know nothing of it."""
