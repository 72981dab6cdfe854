"""The pack's logger."""

import logging

log = logging.getLogger("glance")
