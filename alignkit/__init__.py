"""alignkit: supervised fine-tuning, reward models, DPO and PPO on one shared 4-bit backbone.

Importing this package imports nothing heavy; every command loads what it needs when it runs.
"""

import logging

# bitsandbytes warns at import that an optional kernel package is missing; nothing here needs it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"
