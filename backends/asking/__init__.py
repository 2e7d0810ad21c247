# SPDX-License-Identifier: Apache-2.0
"""One request through one or more attempts at endpoints.

attempts    retries and hedges within budgets
hedge       two copies, the first good answer wins
attempt     one of them, and the place it holds
verdict     what an answer says of its endpoint
"""
