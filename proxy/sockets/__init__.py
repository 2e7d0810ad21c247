# SPDX-License-Identifier: Apache-2.0
"""UDP sockets as Linux can do them: `binding` opens one, `receiver` and `sender` use it; the rest decides."""
