"""alignkit: supervised fine-tuning, reward models, DPO and PPO on one shared 4-bit backbone.

Importing this package imports nothing heavy; every command loads what it needs when it runs.
"""

__version__ = "0.1.0"
