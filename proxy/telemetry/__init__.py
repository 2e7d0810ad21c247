# SPDX-License-Identifier: Apache-2.0
"""What the gateway tells about itself: metrics, log lines, health. It watches the walk and never steers it."""
