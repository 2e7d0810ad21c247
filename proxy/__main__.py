# SPDX-License-Identifier: Apache-2.0
"""`python -m proxy`: the command `inferlane`."""

from __future__ import annotations

import sys

from proxy.cli import main

sys.exit(main())
