# SPDX-License-Identifier: Apache-2.0
"""`inferlane run`: one small process that binds, starts, watches and ends; and workers, each a whole gateway."""
